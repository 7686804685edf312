"""Operations on some rows of a matrix only, with gradients written by hand.

LoRA acts on COMP tokens, which are few among the text. Their rows are gathered, and the update is added in place,
forward and backward. W is frozen, so nothing is saved for its gradient. The numbers are those of y.index_add(0, index,
update) on y = W x, and of x[index]; autograd's own gradients of these are larger, slower, or summed in a random order.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


class SelectRows(torch.autograd.Function):
    """x.index_select(dim, index) for an int64 index (R,).

    No row may come twice, except padding that gets no gradient. So the gradient is written; autograd would sum it.
    """

    @staticmethod
    def forward(ctx, x: Tensor, index: Tensor, dim: int = 0) -> Tensor:
        ctx.save_for_backward(index)
        ctx.shape, ctx.dim = x.shape, dim
        return x.index_select(dim, index)

    @staticmethod
    def backward(ctx, gradient: Tensor):
        (index,) = ctx.saved_tensors
        return gradient.new_zeros(ctx.shape).index_copy(ctx.dim, index, gradient), None, None


class LoRARows(torch.autograd.Function):
    """x W^T, plus scale * (dropout * x) A^T B^T on the rows `index` only. W is frozen.

    x (N, in), W (out, in), index (R,) as in SelectRows; dropout: the factors (R, in), or None. Several adapters of one
    x can be joined: A (parts * r, in) and B (out, r), whose rows belong to the parts by `sizes`.
    """

    @staticmethod
    def forward(ctx, x, W, index, dropout, scale, sizes, A, B):
        y, rows = F.linear(x, W), x.index_select(0, index)
        ctx.save_for_backward(W, index, dropout, rows, A, B)
        ctx.scale, ctx.sizes = scale, sizes
        low = _times_A(rows, dropout, A)[1].chunk(len(sizes), 1)
        update = torch.cat([F.linear(*part) for part in zip(low, B.split(sizes))], 1) * scale
        return _add_rows(y, index, update)

    @staticmethod
    def backward(ctx, dy):
        W, index, dropout, rows, A, B = ctx.saved_tensors
        rows, low = _times_A(rows, dropout, A)
        d_update = (dy.index_select(0, index).to(A.dtype) * ctx.scale).split(ctx.sizes, 1)
        d_low = torch.cat([part @ B_part for part, B_part in zip(d_update, B.split(ctx.sizes))], 1)  # (R, parts * r)
        dB = torch.cat([part.T @ low_part for part, low_part in zip(d_update, low.chunk(len(ctx.sizes), 1))])
        d_rows = d_low @ A if dropout is None else d_low @ A * dropout
        return _add_rows(dy @ W, index, d_rows), None, None, None, None, None, d_low.T @ rows, dB


def _add_rows(y: Tensor, index: Tensor, update: Tensor) -> Tensor:
    """y with an update added to some rows, in place; compiled code finds by itself that this can be in place."""
    put = y.index_copy if torch.compiler.is_compiling() else y.index_copy_
    return put(0, index, y.index_select(0, index) + update.to(y.dtype))


def _times_A(rows: Tensor, dropout: Tensor | None, A: Tensor) -> tuple[Tensor, Tensor]:
    """The rows of x after dropout, and their products with A (R, parts * r), both in A's dtype."""
    rows = rows.to(A.dtype) if dropout is None else rows.to(A.dtype) * dropout
    return rows, F.linear(rows, A)
