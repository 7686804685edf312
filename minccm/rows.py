"""Products on some rows of a tensor alone, with gradients that autograd would make larger, slower or in changing order.

LoRA acts on COMP tokens, which are few among the text. Their rows are gathered, and what is added to them is put in
place, forward and backward; W, being frozen, needs nothing kept of it. This is for speed: y.index_add(0, gate, update)
on y = W x, and x[rows], give the same numbers.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


class Rows(torch.autograd.Function):
    """x[rows] along a dimension, for rows (R,) of which no two are the same, but for padding without a gradient.

    So its gradient is written, where autograd's own would be summed up, slowly and in an order that changes from run to
    run.
    """

    @staticmethod
    def forward(ctx, x: Tensor, rows: Tensor, dim: int = 0) -> Tensor:
        ctx.save_for_backward(rows)
        ctx.shape, ctx.dim = x.shape, dim
        return x.index_select(dim, rows)

    @staticmethod
    def backward(ctx, gradient: Tensor):
        (rows,) = ctx.saved_tensors
        return gradient.new_zeros(ctx.shape).index_copy(ctx.dim, rows, gradient), None, None


class OnRows(torch.autograd.Function):
    """x W^T, and on the rows `gate` alone + scale * (keep * x) A^T B^T; W is frozen.

    x (N, in), weight (out, in), gate (R,) as in Rows; keep (R, in), the dropout's factors, or None. Several adapters of
    one x may stand together: a (parts * r, in), and b (out, r), of which sizes tells how many rows are whose.
    """

    @staticmethod
    def forward(ctx, x, weight, gate, keep, scale, sizes, a, b):
        y, rows = F.linear(x, weight), x.index_select(0, gate)
        ctx.save_for_backward(weight, gate, keep, rows, a, b)
        ctx.scale, ctx.sizes = scale, sizes
        low = _low(rows, keep, a)[1].chunk(len(sizes), 1)
        update = torch.cat([F.linear(*part) for part in zip(low, b.split(sizes))], 1) * scale
        return _added(y, gate, update)

    @staticmethod
    def backward(ctx, dy):
        weight, gate, keep, rows, a, b = ctx.saved_tensors
        rows, low = _low(rows, keep, a)
        d_update = (dy.index_select(0, gate).to(a.dtype) * ctx.scale).split(ctx.sizes, 1)
        d_low = torch.cat([part @ b_ for part, b_ in zip(d_update, b.split(ctx.sizes))], 1)  # (R, parts * r)
        d_b = torch.cat([part.T @ low_ for part, low_ in zip(d_update, low.chunk(len(ctx.sizes), 1))])
        d_rows = d_low @ a if keep is None else d_low @ a * keep
        return _added(dy @ weight, gate, d_rows), None, None, None, None, None, d_low.T @ rows, d_b


def _added(y: Tensor, rows: Tensor, update: Tensor) -> Tensor:
    """y with an update added to some rows, in place; compiled code finds for itself that this can be in place."""
    put = y.index_copy if torch.compiler.is_compiling() else y.index_copy_
    return put(0, rows, y.index_select(0, rows) + update.to(y.dtype))


def _low(rows: Tensor, keep: Tensor | None, a: Tensor) -> tuple[Tensor, Tensor]:
    """The rows of x after dropout, and their products with A (R, parts * r), in A's dtype."""
    rows = rows.to(a.dtype) if keep is None else rows.to(a.dtype) * keep
    return rows, F.linear(rows, a)
