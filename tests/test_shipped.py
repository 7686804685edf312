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


@pytest.mark.parametrize(
    "method, low, high", [("none", 0, 0.15), ("full", 0.93, 1), ("ccm-concat", 0.88, 1), ("ccm-merge", 0.7, 1)]
)
def test_recall(shipped, tiny, method, low, high):
    """After 8 turns: exact recall with full context, with compressed memory, and hardly any without context."""
    assert low <= of(shipped, tiny, method, "dialog", 8)["recall"] <= high


@pytest.mark.parametrize("name", ["icl", "persona"])
def test_gap(shipped, tiny, name):
    """After 16 demonstrations or profile lines, compressed memory closes most of the gap from none to full context."""
    none, full, concat, merge = (
        of(shipped, tiny, method, name, 16)["accuracy"] for method in ("none", "full", "ccm-concat", "ccm-merge")
    )
    assert full > 0.85 and none < 0.5
    assert (concat - none) / (full - none) > 0.8 and (merge - none) / (full - none) > 0.65
