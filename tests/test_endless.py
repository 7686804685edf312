"""A memory of constant size without end: examples/sliding.py, and how experiments/endless.py measures it."""

import json
from dataclasses import replace

import pytest
import torch

from experiments import endless
from minccm.io.options import TINY
from minccm.io.templates import TEMPLATES
from minccm.io.tokenizer import Tokenizer
from minccm.methods import METHODS
from minccm.session import Session
from tests.conftest import ALL_METHODS, EXAMPLES, random_model
from tests.test_parallel_is_recursive import TOLERANCE, parallel_logits, recursive_logits

SLIDING = EXAMPLES["sliding"]


@pytest.fixture(scope="module")
def writer():
    return endless.Writer(Tokenizer(TINY), TEMPLATES["dialogue"])


@torch.no_grad()
def test_the_memory_stops_growing():
    """It holds as many pairs at step 300 as at step 30: those of the last 16 steps."""
    session, held = Session(random_model(2), SLIDING, 2), {}
    for step in range(1, 301):
        session.read([5 + step % 30, 6])
        held[step] = len(session.memory)
    assert held[30] == held[300] == 32 and max(held.values()) == 32


def test_parallel_is_recursive():
    """Over many more steps than the memory holds."""
    contexts, question = [[5 + step % 30] * (1 + step % 3) for step in range(50)], ([5], [7, 8])
    model = random_model(2)
    (parallel,) = parallel_logits(model, SLIDING, 2, [(contexts, question)])
    torch.testing.assert_close(parallel, recursive_logits(model, SLIDING, 2, contexts, question), **TOLERANCE)


def test_it_is_concat_until_it_is_full():
    """For up to 16 steps the numbers are those of ccm-concat."""
    model, question = random_model(2), ([5], [7, 8])
    for steps, same in ((16, True), (17, False)):
        contexts = [[5 + step, 6] for step in range(steps)]
        concat, sliding = (recursive_logits(model, m, 2, contexts, question) for m in (METHODS["ccm-concat"], SLIDING))
        assert torch.allclose(concat, sliding) == same


@torch.no_grad()
def test_far_positions_change_nothing():
    """After a million tokens, keys and queries are rotated by large angles; fp32 logits differ by rounding only."""
    logits = []
    for start in (0, 1_000_000):
        session = Session(random_model(2, torch.float32), SLIDING, 2)
        session.memory = replace(session.memory, text=start)
        for step in range(20):
            session.read([5 + step, 6, 7])
        logits.append(session.logits([3, 4, 5]))
    torch.testing.assert_close(*logits, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", ["sliding", "ccm-concat", "ccm-merge", "two-level", "full"])
@torch.no_grad()
def test_a_reader_is_a_session(name):
    """Contexts in blocks: the same memory, and the losses of one context at a time."""
    method, model = ALL_METHODS[name], random_model(2)
    contexts = [[5 + step % 30, 6, 7 + step % 3] for step in range(21)]
    reader, session = endless.Reader(model, method, 2, block=4), Session(model, method, 2)
    losses = reader.read(contexts)
    for ids, loss in zip(contexts, losses):
        expected = session.logits(ids)[:-1].log_softmax(-1)
        torch.testing.assert_close(loss.double(), -expected[range(2), ids[1:]], atol=1e-5, rtol=1e-5)
        session.read(ids)
    assert (reader.memory.step, reader.memory.text) == (session.memory.step, session.memory.text)
    torch.testing.assert_close(reader.memory.keys, session.memory.keys, **TOLERANCE)
    torch.testing.assert_close(reader.memory.values, session.memory.values, **TOLERANCE)


def test_conversations(writer):
    """They never end; each question is about a value that was told in the noted turn, and not later."""
    talk = endless.talk_with_questions(writer, "test", [20, 300])
    lines = [writer.tokenizer.decode(ids) for ids in talk.contexts]
    assert len(lines) == 300 and talk.questions.keys() == {20, 300}
    assert len(set(lines)) > 200
    for turn, questions in talk.questions.items():
        assert len(questions) > 2
        for question in questions:
            assert 1 <= question.distance <= endless.FAR
            told = turn - question.distance
            assert question.value.lower() in lines[told].lower()
            assert not any(question.value.lower() in line.lower() for line in lines[told + 1 : turn])


def test_pairs(writer):
    """The pairs of a memory after some turns, by method."""
    pairs = {name: endless.pairs_after(ALL_METHODS[name], 2, 40) for name in ("sliding", "ccm-concat", "ccm-merge")}
    assert pairs == {"sliding": 32, "ccm-concat": 80, "ccm-merge": 2}


def test_names():
    """A value counts as whole words only."""
    assert endless.names("It is in New York.", "new york") and not endless.names("A steamer.", "tea")


def test_the_command(monkeypatch, capsys, tmp_path):
    """At toy size: tables, JSON and a picture; constant pairs for the sliding memory."""
    monkeypatch.setattr(endless, "PROBE", 44)
    monkeypatch.setattr(endless, "MARKS", (300,))
    files = ["--json", str(tmp_path / "a.json"), "--picture", str(tmp_path / "a.png"), "--device", "cpu"]
    small = ["--adapter", str(TINY / "ccm-concat"), "--turns", "4", "24", "--talks", "2", "--tokens", "400"]
    monkeypatch.setattr("sys.argv", ["endless", *small, *files])
    endless.main()
    rows = json.loads((tmp_path / "a.json").read_text())
    pairs = {(row["method"], row["turn"]): row["pairs"] for row in rows if "turn" in row}
    own, other = "ccm-concat", "ccm-concat as sliding"
    assert pairs == {(own, 4): 8, (own, 24): 48, (other, 4): 8, (other, 24): 32}
    assert {row["method"]: row["pairs"] for row in rows if "probe" in row}[other] == 32
    assert "without end" in capsys.readouterr().out
    assert (tmp_path / "a.png").read_bytes()[:4] == b"\x89PNG"
