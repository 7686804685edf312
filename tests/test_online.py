"""Online: memory has the size it claims, generation continues it, and drawing tokens is what it says."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from minccm.methods import get_method
from minccm.online import Recursive, Session, sample
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
    """Concat holds n pairs a step, merge n in all, full context every token; BOS beside them where there is a sink."""
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
def test_generation_is_the_likeliest_continuation(name, ids):
    """Token by token over the growing cache equals argmax over the whole text anew each time; memory stays."""
    session = Session(random_model(2), get_method(name), 2)
    session.read([1, 5, 6, 7])
    before = session.memory.keys.clone()
    text = list(ids)
    for token in session.generate(ids, max_tokens=6, stop=False):
        assert token == int(session.logits(text)[-1].argmax())
        text.append(token)
    assert len(text) == len(ids) + 6 and torch.equal(session.memory.keys, before)


def test_drawing_tokens():
    """Temperature 0 takes the likeliest; top-p draws from no more tokens than it takes to reach p; seeds repeat."""
    logits = torch.log(torch.tensor([0.5, 0.3, 0.15, 0.05]))
    assert sample(logits[None], 0.0, 1.0).tolist() == [0]
    seeded = lambda seed: torch.Generator().manual_seed(seed)
    draws = lambda top_p: [sample(logits[None], 1.0, top_p, seeded(seed)).item() for seed in range(300)]
    assert set(draws(0.4)) == {0} and set(draws(0.7)) == {0, 1} and set(draws(1.0)) == {0, 1, 2, 3}
    assert draws(1.0) == draws(1.0)
    assert 110 < draws(1.0).count(0) < 190


@pytest.mark.parametrize("name, sink", [("ccm-concat", False), ("ccm-merge", True), ("ccm-concat-independent", False)])
def test_what_comp_tokens_listen_to(name, sink, monkeypatch):
    """Shares among the step's text of the attention that COMP tokens really pay, and watching changes nothing."""
    method, ids, n = get_method(name, sink), [8, 9, 10], 2
    watched, plain, paid = Session(random_model(n), method, n), Session(random_model(n), method, n), []
    for session in (watched, plain):
        session.read([1, 5, 6, 7])
    before = len(watched.memory)

    def attend(self, queries, keys, values):
        """Attention with the identity for values is the attention weights."""
        eye = torch.eye(keys.shape[2], dtype=keys.dtype).expand(1, queries.shape[1], -1, -1)
        keys_of_heads = keys.repeat_interleave(queries.shape[1] // keys.shape[1], 1)
        weights = F.scaled_dot_product_attention(queries, keys_of_heads, eye, self.mask)
        text = weights[0, :, len(ids) :, before : before + len(ids)]  # (heads, n, N)
        paid.append((text / text.sum(-1, keepdim=True)).mean(0))
        return original(self, queries, keys, values)

    original = Recursive.attend
    plain.read(ids)
    monkeypatch.setattr(Recursive, "attend", attend)
    shares = watched.read(ids, watch=True)
    torch.testing.assert_close(shares, torch.stack(paid).mean(0).float(), atol=1e-6, rtol=0)
    assert shares.shape == (n, len(ids)) and torch.equal(watched.memory.keys, plain.memory.keys)
