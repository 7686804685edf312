"""Backpropagation through time gives the loss and gradients of parallel training, for every method, in float64."""

import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from minccm.extra.recurrent import forward_recurrent
from minccm.parallel import forward_parallel
from minccm.sequence import build_sequence, pad_batch
from tests.conftest import random_model
from tests.test_parallel_is_recursive import TOLERANCE, batches, methods


def loss_and_gradients(forward, method, n, batch):
    model = random_model(n, learned=method.learned)
    at = batch.loss_weights > 0
    losses = F.cross_entropy(forward(model, method, batch), batch.tokens.roll(-1, dims=1)[at], reduction="none")
    loss = (losses * batch.loss_weights[at]).sum()
    loss.backward()
    trained = model.adapter_state()
    return loss.detach(), {name: torch.zeros_like(p) if p.grad is None else p.grad for name, p in trained.items()}


@settings(max_examples=60, deadline=None, derandomize=True)
@given(methods, st.integers(1, 4), batches, st.sampled_from([0.0, 0.5]), st.integers(1, 3))
def test_the_same_loss_and_gradients(method, n, batch, context_loss, count):
    """Batches of unequal samples, with and without a loss on contexts, one question or more: within 1e-9."""
    sequences = [
        build_sequence(method, n, 40, contexts, [question] * count, context_loss=context_loss)
        for contexts, question in batch
    ]
    parallel, expected = loss_and_gradients(forward_parallel, method, n, pad_batch(sequences))
    recurrent, found = loss_and_gradients(forward_recurrent, method, n, pad_batch(sequences))
    torch.testing.assert_close(recurrent, parallel, **TOLERANCE)
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, **TOLERANCE)
