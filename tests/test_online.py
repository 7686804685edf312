"""Online inference: the memory has the size it should have, generation continues it, and sampling does as it says."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

import minccm.session as session_module
from minccm.extra.inside import ListeningSession
from minccm.methods import get_method
from minccm.session import Session, sample
from tests.conftest import random_model

CONTEXTS = [[1, 5, 6, 7], [8, 9], [], [10, 11, 12]]


@pytest.mark.parametrize(
    "name, sink, pairs",
    [
        ("none", False, [0, 0, 0, 0]),
        ("full", False, [4, 6, 6, 9]),
        ("ccm-concat", False, [2, 4, 6, 8]),
        ("ccm-concat", True, [3, 5, 7, 9]),
        ("ccm-merge", False, [2, 2, 2, 2]),
        ("ccm-merge", True, [3, 3, 3, 3]),
        ("ccm-merge-ema", False, [2, 2, 2, 2]),
        ("compressive", False, [2, 4, 4, 6]),
    ],
)
def test_size_of_memory(name, sink, pairs):
    """Concat holds n pairs per step, merge n in all, full context every token; with a sink there is also BOS."""
    session, held = Session(random_model(2), get_method(name, sink), 2), []
    for context in CONTEXTS:
        session.read(context)
        held.append(len(session.memory))
    assert held == pairs
    layers, heads, head_dim, double, key_and_value = 2, 2, 4, 8, 2
    assert session.memory.nbytes == pairs[-1] * layers * heads * head_dim * double * key_and_value


@settings(max_examples=20, deadline=None, derandomize=True)
@given(
    st.sampled_from(["full", "ccm-concat", "ccm-merge", "gist"]), st.lists(st.integers(3, 39), min_size=1, max_size=8)
)
def test_generation_is_the_most_likely_continuation(name, ids):
    """Token by token with a growing cache equals argmax over the whole text each time; the memory does not change."""
    session = Session(random_model(2), get_method(name), 2)
    session.read([1, 5, 6, 7])
    before = session.memory.keys.clone()
    text = list(ids)
    for token in session.generate(ids, max_tokens=6, stop_ids=()):
        assert token == int(session.logits(text)[-1].argmax())
        text.append(token)
    assert len(text) == len(ids) + 6 and torch.equal(session.memory.keys, before)


def test_sampling():
    """Temperature 0 takes the most likely token; top-p draws from no more tokens than reach p; seeds repeat."""
    logits = torch.log(torch.tensor([0.5, 0.3, 0.15, 0.05]))
    assert sample(logits[None], 0.0, 1.0).tolist() == [0]
    seeded = lambda seed: torch.Generator().manual_seed(seed)
    draws = lambda top_p: [sample(logits[None], 1.0, top_p, seeded(seed)).item() for seed in range(300)]
    assert set(draws(0.4)) == {0} and set(draws(0.7)) == {0, 1} and set(draws(1.0)) == {0, 1, 2, 3}
    assert draws(1.0) == draws(1.0)
    assert 110 < draws(1.0).count(0) < 190


@pytest.mark.parametrize("name, sink", [("ccm-concat", False), ("ccm-merge", True), ("ccm-concat-independent", False)])
def test_what_comp_tokens_attend_to(name, sink, monkeypatch):
    """`heard` is the real attention of COMP tokens to their step's text, and to record it changes no number."""
    method, ids, n = get_method(name, sink), [8, 9, 10], 2
    listening, plain, real = ListeningSession(random_model(n), method, n), Session(random_model(n), method, n), []
    for session in (listening, plain):
        session.read([1, 5, 6, 7])
    before = len(listening.memory)

    def attend(q, k, v, mask):
        """Attention with the identity for values is the attention weights."""
        eye = torch.eye(k.shape[2], dtype=k.dtype).expand(1, q.shape[1], -1, -1)
        weights = F.scaled_dot_product_attention(q, k.repeat_interleave(q.shape[1] // k.shape[1], 1), eye, mask)
        text = weights[0, :, len(ids) :, before : before + len(ids)]  # (heads, n, N)
        real.append((text / text.sum(-1, keepdim=True)).mean(0))
        return original(q, k, v, mask)

    original = session_module.attend
    plain.read(ids)
    monkeypatch.setattr(session_module, "attend", attend)
    listening.read(ids)
    torch.testing.assert_close(listening.heard, torch.stack(real).mean(0).float(), atol=1e-6, rtol=0)
    assert listening.heard.shape == (n, len(ids)) and torch.equal(listening.memory.keys, plain.memory.keys)


def test_nothing_is_heard_without_comp_tokens():
    """Full context has no COMP tokens, and so says nothing about them; its numbers are those of a Session."""
    listening, plain = (kind(random_model(2), get_method("full"), 0) for kind in (ListeningSession, Session))
    for session in (listening, plain):
        session.read([1, 5, 6, 7])
    assert listening.heard is None and torch.equal(listening.logits([8, 9]), plain.logits([8, 9]))
