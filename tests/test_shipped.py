"""The model that ships remembers: the README's table in small."""

import pytest

import data
from data.encode import encoder
from experiments.talks import answers, script
from minccm.extra.conversation import open_conversation
from minccm.extra.evaluate import BASELINES, Evaluator, Run
from minccm.io.adapters import load_adapter
from minccm.io.options import TINY, open_base
from minccm.io.templates import choose_template

COUNT = 60


@pytest.fixture(scope="module")
def shipped() -> Evaluator:
    model, tokenizer = open_base(TINY)
    return Evaluator(model, tokenizer, encoder(tokenizer, choose_template(TINY)))


def run_of(shipped: Evaluator, method: str) -> Run:
    runs = {run.label: run for run in BASELINES}
    return runs.get(method) or Run(*load_adapter(shipped.model, TINY / method))


def measured(shipped: Evaluator, method: str, name: str, time_step: int) -> dict:
    return shipped.measure(run_of(shipped, method), data.at_step(name, "test", time_step, COUNT))


@pytest.mark.parametrize(
    "method, low, high", [("none", 0, 0.15), ("full", 0.95, 1), ("ccm-concat", 0.9, 1), ("ccm-merge", 0.8, 1)]
)
def test_recall(shipped, method, low, high):
    """After 8 turns: exact recall of a fact with full context and with either memory, hardly any without."""
    assert low <= measured(shipped, method, "dialog", 8)["recall"] <= high


@pytest.mark.parametrize("method, low", [("ccm-concat", 0.88), ("ccm-merge", 0.8)])
def test_recall_by_distance(shipped, method, low):
    """A fact told eight turns ago, in conversations of 8 to 20 turns, is recalled from either memory."""
    assert shipped.by_distance(run_of(shipped, method), [8], COUNT)[0]["recall"] >= low


@pytest.mark.parametrize("method, low", [("ccm-concat", 0.9), ("ccm-merge", 0.8)])
def test_compressed_memory_helps(shipped, method, low):
    """After 2 turns a fact is recalled; after 12, memory is a fifth of full context's and replies surprise less."""
    assert measured(shipped, method, "dialog", 2)["recall"] > low
    compressed, none, full = (measured(shipped, name, "dialog", 12) for name in (method, "none", "full"))
    assert compressed["perplexity"] < 0.8 * none["perplexity"]
    assert 5 * compressed["kv_pairs"] < full["kv_pairs"]


@pytest.mark.parametrize("name, low", [("persona", 0.9), ("icl", 0.85)])
def test_gap_closed(shipped, name, low):
    """After 16 lines of a profile, or 16 demonstrations, either memory closes the gap from no to full context."""
    runs = "none", "full", "ccm-concat", "ccm-merge"
    none, full, concat, merge = (measured(shipped, run, name, 16)["accuracy"] for run in runs)
    assert full > 0.9 and none < 0.5 and (concat - none) / (full - none) > low
    assert (merge - none) / (full - none) > low


@pytest.mark.parametrize("method", ["ccm-concat", "ccm-merge"])
def test_whole_conversations(method):
    """After twelve exchanges in the model's own words, either memory has nearly all that the user told."""
    talk = open_conversation(method=method)
    right = 0
    for facts, lines in map(script, range(3)):
        right += sum(facts[name] in answer for name, answer in answers(talk, lines).items())
    assert right >= 8
