"""LoRA's arithmetic on some rows is written by hand, forward and backward: it is that of the formula in lora.py."""

import pytest
import torch
import torch.nn.functional as F

from minccm.rows import OnRows, Rows


@pytest.mark.parametrize("dropout", [False, True])
@pytest.mark.parametrize("sizes", [[3], [3, 2, 2]])
def test_lora_on_rows(sizes, dropout):
    """In float64: y = W x + m scale B A (keep x) for each part, and its gradients in x, A and B by autograd."""
    torch.manual_seed(0)
    make = lambda *shape: torch.randn(*shape, dtype=torch.float64)
    gate, scale, r, width, count = torch.tensor([1, 2, 5]), 1.5, 2, 4, 7
    x, weight, a, b = make(count, width), make(sum(sizes), width), make(len(sizes) * r, width), make(sum(sizes), r)
    keep = torch.tensor([0.0, 2.0])[torch.randint(2, (len(gate), width))].double() if dropout else None
    trained = [tensor.requires_grad_() for tensor in (x, a, b)]

    def formula(x, a, b):
        kept = x[gate] if keep is None else x[gate] * keep
        parts = [kept @ a_.T @ b_.T for a_, b_ in zip(a.split(r), b.split(sizes))]
        return F.linear(x, weight).index_add(0, gate, scale * torch.cat(parts, 1))

    into, found = make(count, sum(sizes)), []
    for run in (lambda x, a, b: OnRows.apply(x, weight, gate, keep, scale, sizes, a, b), formula):
        y = run(x, a, b)
        found.append([y, *torch.autograd.grad((y * into).sum(), trained)])
    for got, expected in zip(*found):
        torch.testing.assert_close(got, expected, atol=1e-12, rtol=1e-12)


def test_rows():
    """Rows are those of indexing, and the others get no gradient."""
    x, rows = torch.randn(6, 2, dtype=torch.float64, requires_grad=True), torch.tensor([4, 0])
    assert torch.equal(Rows.apply(x, rows), x[rows])
    (gradient,) = torch.autograd.grad(Rows.apply(x, rows).sum(), x)
    assert gradient.sum(1).tolist() == [2, 0, 0, 0, 2, 0]
