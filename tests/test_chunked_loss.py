"""The loss in chunks of rows is the loss of all logits, and so is its gradient."""

import pytest
import torch

from minccm.fast import loss as losses
from minccm.fast.loss import chunked_loss, weighted_loss

VOCAB, DIM = 40, 6


def made(rows, dtype=torch.float64, seed=0):
    """Hidden states of student and teacher (R, DIM), W, labels, and loss weights of 0, below 1, and from 1 on."""
    torch.manual_seed(seed)
    hidden, teacher = (torch.randn(rows, DIM, dtype=dtype) for _ in range(2))
    weight = torch.randn(VOCAB, DIM, dtype=dtype)
    weights = torch.tensor([0.0, 0.1, 1.0, 2.0])[torch.randint(4, (rows,))]
    return hidden.requires_grad_(), teacher, weight, torch.randint(VOCAB, (rows,)), weights


def both(hidden, teacher, weight, labels, weights, distill, factor=0.3, **options):
    """Loss and gradient of the loss over `factor`, in chunks and as a whole."""
    taught = teacher if distill else None
    found = chunked_loss(hidden, weight, labels, weights, taught, distill, **options)
    whole = weighted_loss(hidden @ weight.T, labels, weights, taught @ weight.T if distill else None, distill)
    return [(loss.detach(), *torch.autograd.grad(loss / factor, hidden)) for loss in (found, whole)]


@pytest.mark.parametrize("distill", [0.0, 0.7])
@pytest.mark.parametrize("rows", [1, 7, 16, 21])
def test_chunks_are_the_whole(rows, distill, monkeypatch):
    """In float64, to 1e-9, with whole and with partial chunks of 8 rows; a row of weight 0 gets no gradient."""
    monkeypatch.setattr(losses, "CHUNK", 8 * VOCAB)
    given = made(rows)
    found, expected = both(*given, distill)
    torch.testing.assert_close(found, expected, atol=1e-9, rtol=1e-9)
    assert not found[1][given[-1] == 0].any()


@pytest.mark.parametrize("distill", [0.0, 0.7])
def test_in_bf16(distill):
    """Softmax is fp32, and the gradient is rounded twice, where autograd's is rounded once."""
    given = made(64, torch.bfloat16)
    hidden, *others = given
    found, whole = both(*given, distill)
    exact = [x.double() if x.is_floating_point() else x for x in (hidden.detach(), *others)]
    _, expected = both(exact[0].requires_grad_(), *exact[1:], distill)
    assert found[0].dtype == torch.float32 and found[1].dtype == torch.bfloat16
    error = [[float((a.double() - b).norm() / b.norm()) for a, b in zip(x, expected)] for x in (found, whole)]
    assert error[0][0] < 0.01 and error[0][1] < 1.6 * error[1][1] < 0.02


def test_compiled_and_without_a_gradient(monkeypatch):
    """A chunk's function compiles as one graph; without a gradient, none is computed."""
    given = made(16, torch.float32)
    compiled = torch.compile(losses._chunk, fullgraph=True, backend="aot_eager")
    monkeypatch.setattr(losses, "_compiled_chunk", lambda: compiled)
    monkeypatch.setattr(losses, "COMPILED_CHUNK", 8 * VOCAB)
    found, expected = both(*given, 0.7, compile=True)
    torch.testing.assert_close(found, expected)
    hidden, teacher, weight, labels, weights = given
    with torch.no_grad():
        loss = chunked_loss(hidden, weight, labels, weights, teacher, 0.7)
    assert not loss.requires_grad
    torch.testing.assert_close(loss, expected[0])
