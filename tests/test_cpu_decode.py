"""A CPUSession reads and answers as a Session does."""

from dataclasses import replace

import pytest
import torch

from minccm.fast import cpu_decode
from minccm.fast.cpu_decode import Answer, CPUSession
from minccm.methods import get_method
from minccm.session import Session
from tests.conftest import ALL_METHODS, random_model

STEP1 = replace(get_method("full"), name="step 1", conditional=False)
CONTEXTS = [[1, 5, 6, 7, 9], [8, 9], [10, 11, 12, 13, 14, 15, 16], [17]]


def read(kind, model, method, count):
    session = kind(model, method, 2)
    with torch.no_grad():
        for ids in CONTEXTS[:count]:
            session.read(ids)
    return session


@pytest.mark.parametrize("sink", [False, True])
@pytest.mark.parametrize("name", [*ALL_METHODS, "step 1"])
def test_answers_of_a_session(name, sink, monkeypatch):
    """Greedy and drawn, after 0 to 4 contexts, in buffers that grow, and no answer; the memory is unchanged."""
    monkeypatch.setattr(cpu_decode, "ROOM", 4)
    method = replace((ALL_METHODS | {"step 1": STEP1})[name], sink=sink)
    model = random_model(2, learned=method.learned, layers=3)
    for count in (0, 1, 4):
        plain, fast = (read(kind, model, method, count) for kind in (Session, CPUSession))
        before = len(fast.memory)
        for options in ({}, {"temperature": 1.0, "top_p": 0.9}, {"max_tokens": 1}, {"max_tokens": 0}):
            found = []
            for session in (plain, fast, fast):
                generator = torch.Generator().manual_seed(3)
                given = {"max_tokens": 9} | options
                found.append(list(session.generate([20, 21, 22], generator=generator, stop_ids=(2,), **given)))
            assert found[0] == found[1] == found[2] and len(fast.memory) == before


@pytest.mark.parametrize("sink", [False, True])
@pytest.mark.parametrize("name", [*ALL_METHODS, "step 1"])
def test_memory_of_a_session(name, sink):
    """Contexts of several lengths give the same memory and logits, in fp64 to rounding."""
    method = replace((ALL_METHODS | {"step 1": STEP1})[name], sink=sink)
    model = random_model(2, learned=method.learned, layers=3).double()
    plain, fast = (read(kind, model, method, 4) for kind in (Session, CPUSession))
    for field in ("keys", "values"):
        torch.testing.assert_close(getattr(fast.memory, field), getattr(plain.memory, field), rtol=1e-9, atol=1e-9)
    assert vars(fast.memory.info).keys() == vars(plain.memory.info).keys()
    assert all(map(torch.equal, vars(fast.memory.info).values(), vars(plain.memory.info).values()))
    assert (fast.memory.step, fast.memory.tokens) == (plain.memory.step, plain.memory.tokens)
    with torch.no_grad():
        torch.testing.assert_close(fast.logits([20, 21]), plain.logits([20, 21]), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", ["full", "ccm-concat", "ccm-merge", "gist"])
@pytest.mark.parametrize("dtype, close", [(torch.float64, 1e-10), (torch.bfloat16, 0.05)])
def test_logits(name, dtype, close):
    """Each token's logits, with grouped queries; oneDNN is on again after a token."""
    method = ALL_METHODS[name]
    session = read(CPUSession, random_model(2, layers=3).to(dtype), method, 3)
    ids, answer = [20, 21], [22, 23, 24, 25]
    with torch.no_grad():
        expected = session.logits(ids + answer)
        _, kv, _ = session._forward(session.memory, ids, question=1)
        compute = Answer(session.model, session.method, session.memory, kv)
        found = torch.cat([compute(token) for token in answer])
    assert torch.backends.mkldnn.enabled
    error = (found - expected[len(ids) :]).norm() / expected.norm()
    assert error < close


def test_an_attention_rule_that_forgets():
    """Tokens attend to COMP tokens and the last three tokens only: each token of the answer has a mask of its own."""
    near = lambda q, k: k.is_comp | (k.is_text & (q.order - k.order < 3))
    method = replace(get_method("ccm-concat"), attends=near)
    model = random_model(2, layers=3)
    found = [
        list(read(kind, model, method, 3).generate([20, 21, 22], 9, stop_ids=())) for kind in (Session, CPUSession)
    ]
    assert found[0] == found[1]
