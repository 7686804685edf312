"""The model that ships remembers: the README's table in small."""

import pytest

import data
from eval import BASELINES, Run, measure
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


@pytest.mark.parametrize("method, low, high", [("none", 0, 0.15), ("full", 0.65, 1)])
def test_recall(shipped, tiny, method, low, high):
    """After 8 turns: exact recall with full context, and hardly any without context."""
    assert low <= of(shipped, tiny, method, "dialog", 8)["recall"] <= high


@pytest.mark.parametrize("method", ["ccm-concat", "ccm-merge"])
def test_compressed_memory_helps(shipped, tiny, method):
    """After 8 turns, replies surprise less with compressed memory than without context, at a fifth of the pairs."""
    compressed, none, full = (of(shipped, tiny, name, "dialog", 8) for name in (method, "none", "full"))
    assert compressed["perplexity"] < 0.8 * none["perplexity"]
    assert 5 * compressed["kv_pairs"] < full["kv_pairs"]


def test_persona(shipped, tiny):
    """After 16 lines of a profile, concatenated memory closes most of the gap from no to full context."""
    none, full, concat = (of(shipped, tiny, name, "persona", 16)["accuracy"] for name in ("none", "full", "ccm-concat"))
    assert full > 0.75 and none < 0.45 and (concat - none) / (full - none) > 0.6
