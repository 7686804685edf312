"""Evaluation counts what the paper counts: options by sum and mean, tasks evenly, memory at its peak, seeds apart."""

import math

import pytest
import torch

import eval
from data.metaicl import asked
from eval import Run, average, close_gaps, measure, peak_pairs
from minccm.checkpoint import load_model
from minccm.layout import lay_out
from minccm.methods import METHODS, get_method
from minccm.online import Session
from minccm.tokenizer import Tokenizer
from tests.conftest import random_model


def test_options_by_sum_and_by_mean_and_tasks_evenly(tiny, monkeypatch):
    """A long option wins by the mean, a short one by the sum, EOS aside; three samples of one task weigh as one."""
    model, tokenizer = load_model(tiny), Tokenizer(tiny)
    made = {2: [-3.0], 4: [-2.0, -2.0, -2.0]}  # log-probabilities by the length of an option with its EOS

    def scored(model, run, layouts, budget):
        return [
            (torch.tensor(made[int((x.weights > 0).sum())] + [-99.0 if i % 2 else 0.0]), None)
            for i, x in enumerate(layouts)
        ]

    monkeypatch.setattr(eval, "score", scored)
    short, long = "A", "A A A"
    assert (len(tokenizer.encode(short)), len(tokenizer.encode(long))) == (1, 3)
    samples = []
    for task, target in (("one", short), ("one", short), ("one", long), ("other", long)):
        record = {"task": task, "input": "x", "output": target, "tokens": 5, "options": [long, short]}
        samples.append(asked(record, []))
    measured = measure(model, tokenizer, Run(get_method("full")), samples, 100)
    assert measured["accuracy"] == pytest.approx((2 / 3 + 0) / 2)  # by the sum always the short one
    assert measured["accuracy_mean"] == pytest.approx((1 / 3 + 1) / 2)


@pytest.mark.parametrize("name", sorted(METHODS))
def test_peak_memory_is_that_of_the_recursion(name):
    """At most so many KV pairs are held online, while contexts are read and while the target is answered."""
    method, n = get_method(name, sink=True), 2
    model = random_model(n, learned=method.learned)
    contexts, input, target = [[1] + [5] * 6, [6] * 9, [7] * 3], [8, 9], [10, 11, 2]
    session, reading = Session(model, method, n), [0]
    for context in [sum(contexts, [])] if method.comp == "end" else contexts:
        before = len(session.memory)
        session.read(context)
        reading.append(before + len(context) + (n if method.comp else 0))
    layout = lay_out(method, n, 40, contexts, input, target)
    expected = (max(reading) if method.reads else 0, len(session.memory) + len(input) + len(target))
    assert peak_pairs(method, layout) == expected


def test_seeds_are_averaged_after_gaps_are_closed():
    """Mean and standard deviation of each metric over rows that differ by seed; the gap is closed seed by seed."""
    common = {"data": "d", "time_step": 1}
    rows = [
        common | {"method": "none", "perplexity": math.exp(2)},
        common | {"method": "full", "perplexity": math.exp(1)},
    ]
    rows += [common | {"method": "m", "perplexity": math.exp(x)} for x in (1.0, 1.5, 1.25)]
    close_gaps(rows)
    *_, row = average(rows)
    assert row["gap_closed"] == pytest.approx(0.75) and row["gap_closed_std"] == pytest.approx(0.25)
    assert row["seeds"] == 3 and row["perplexity_std"] > 0
    assert "perplexity_std" not in average(rows)[0]
