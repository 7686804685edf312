"""The model that ships remembers: the README's table in small."""

import pytest

import data
from conversation import open_conversation
from eval import BASELINES, Run, evaluate_distances, measure
from measure.talks import answers, script
from minccm.checkpoint import load_adapter, load_model
from minccm.tokenizer import Tokenizer

COUNT = 60


@pytest.fixture(scope="module")
def shipped(tiny):
    return load_model(tiny), Tokenizer(tiny)


def of(shipped, tiny, method, name, time_step):
    model, tokenizer = shipped
    runs = {run.label: run for run in BASELINES}
    run = runs[method] if method in runs else Run(*load_adapter(model, tiny / method))
    return measure(model, tokenizer, run, data.at_step(name, "test", time_step, COUNT), budget=4096)


@pytest.mark.parametrize(
    "method, low, high", [("none", 0, 0.15), ("full", 0.95, 1), ("ccm-concat", 0.9, 1), ("ccm-merge", 0.8, 1)]
)
def test_recall(shipped, tiny, method, low, high):
    """After 8 turns: exact recall of a fact with full context and with either memory, hardly any without."""
    assert low <= of(shipped, tiny, method, "dialog", 8)["recall"] <= high


@pytest.mark.parametrize("method, low", [("ccm-concat", 0.88), ("ccm-merge", 0.8)])
def test_recall_by_distance(shipped, tiny, method, low):
    """A fact told eight turns ago, in conversations of 8 to 20 turns, is recalled from either memory."""
    model, tokenizer = shipped
    run = Run(*load_adapter(model, tiny / method))
    assert evaluate_distances(model, tokenizer, run, [8], COUNT, 0, 4096)[0]["recall"] >= low


@pytest.mark.parametrize("method, low", [("ccm-concat", 0.9), ("ccm-merge", 0.8)])
def test_compressed_memory_helps(shipped, tiny, method, low):
    """After 2 turns a fact is recalled; after 12, memory is a fifth of full context's and replies surprise less."""
    assert of(shipped, tiny, method, "dialog", 2)["recall"] > low
    compressed, none, full = (of(shipped, tiny, name, "dialog", 12) for name in (method, "none", "full"))
    assert compressed["perplexity"] < 0.8 * none["perplexity"]
    assert 5 * compressed["kv_pairs"] < full["kv_pairs"]


@pytest.mark.parametrize("name, low", [("persona", 0.9), ("icl", 0.85)])
def test_gap_closed(shipped, tiny, name, low):
    """After 16 lines of a profile, or 16 demonstrations, either memory closes the gap from no to full context."""
    runs = "none", "full", "ccm-concat", "ccm-merge"
    none, full, concat, merge = (of(shipped, tiny, run, name, 16)["accuracy"] for run in runs)
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
