"""Recurrent training computes what parallel training computes, only step after step: for every method, in float64."""

import json

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from measure import recurrent as measure_recurrent
from minccm.layout import collate, lay_out
from minccm.mask import predict
from minccm.recurrent import predict_recurrent
from tests.conftest import random_model
from tests.test_parallel_is_recursive import batches, methods


def loss_and_gradients(forward, method, n, layouts):
    model, batch = random_model(n, learned=method.learned), collate([[layout] for layout in layouts])
    logits, rows = forward(model, method, batch)
    losses = F.cross_entropy(logits, batch.labels.flatten()[rows], reduction="none")
    loss = (losses * batch.weights.flatten()[rows]).sum()
    loss.backward()
    gradients = {name: p.grad for name, p in model.adapter_state().items()}
    return (
        loss.detach(),
        rows,
        {name: 0 * p if gradients[name] is None else gradients[name] for name, p in model.adapter_state().items()},
    )


@settings(max_examples=60, deadline=None, derandomize=True)
@given(methods, st.integers(1, 4), batches, st.sampled_from([0.0, 0.5]), st.integers(0, 2))
def test_the_same_loss_and_gradients(method, n, batch, text_weight, count):
    """Of batches of unequal samples, with and without a loss on the other text, one question or more: within 1e-9."""
    layouts = [lay_out(method, n, 40, *sample, text_weight, more=[sample[1:]] * count) for sample in batch]
    loss, rows, gradients = loss_and_gradients(predict, method, n, layouts)
    again, places, others = loss_and_gradients(predict_recurrent, method, n, layouts)
    assert torch.equal(places, rows)
    torch.testing.assert_close(again, loss, atol=1e-9, rtol=1e-9)
    for name, gradient in gradients.items():
        torch.testing.assert_close(others[name], gradient, atol=1e-9, rtol=1e-9)


def test_both_ways_are_measured(tmp_path, monkeypatch):
    """python -m measure.recurrent: the same losses of the same samples, and what each way took."""
    command = ["recurrent", "--batch", "2", "--steps", "1", "--device", "cpu", "--json", str(tmp_path / "cost.json")]
    monkeypatch.setattr("sys.argv", command)
    measure_recurrent.main()
    found = json.loads((tmp_path / "cost.json").read_text())
    assert found["parallel"]["losses"] == pytest.approx(found["recurrent"]["losses"], rel=1e-4)
    assert found["recurrent"]["seconds"] > 0
