"""Attention written out, for bf16 on a CPU: there the backward pass of the fused kernel takes several times longer."""

import torch
from torch import Tensor

from minccm.model import attend as fused_attend


def additive(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """The bias of a bool mask, 0 or -inf, where `attend` needs one; otherwise the mask. Once for all layers."""
    if mask.is_cuda or dtype != torch.bfloat16:
        return mask
    return torch.zeros(mask.shape, dtype=dtype).masked_fill(~mask, -torch.inf)


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """As model.attend, which it calls unless q, k and v are bf16 tensors on a CPU. mask: as `additive` returns it."""
    if q.is_cuda or q.dtype != torch.bfloat16:
        return fused_attend(q, k, v, mask)
    if mask is None:
        mask = additive(torch.ones(q.shape[2], k.shape[2], dtype=torch.bool).tril(), q.dtype)
    if q.shape[1] != k.shape[1]:
        k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], 1) for x in (k, v))
    scores = (q * q.shape[3] ** -0.5) @ k.mT  # (B, heads, N, K)
    return scores.add_(mask).softmax(-1) @ v
