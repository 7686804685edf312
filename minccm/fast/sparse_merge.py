"""Merging without the matrix P of parallel.py, which is mostly zeros.

The weight of a COMP token in a slot depends only on their steps (and on their common number j, if slots have rates of
their own). So P K is a gather of the tokens that are merged, in order of step and j, and a product with (T, T).
"""

import functools

import torch
from torch import Tensor

from minccm.fast.rows import SelectRows
from minccm.methods import Method, merge_weights

Mixture = list[tuple[float, Method]]  # shares, and methods whose merge weights they weigh


def weights_on(method: Method, steps: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """merge_weights (T, T, 1 or n) on a device."""
    return merge_weights(method, steps).to(device, dtype)


cached_weights = functools.lru_cache(64)(weights_on)  # for methods that learn no rate: copied to the GPU once


def mixed_weights(mixture: Mixture, steps: int, device: torch.device) -> Tensor:
    """The weighted sum of several methods' merge weights: fp64 (T, T, 1 or n)."""
    return sum(share * cached_weights(method, steps, device, torch.float64) for share, method in mixture)


class SparseMerge:
    """x (B, H, N, head_dim) -> P x (B, H, M, head_dim), with M = G * T * n slots."""

    def __init__(self, merge_index: Tensor, weights: Tensor, pad: int, dtype: torch.dtype):
        """merge_index (B, G, T, n, S): see PackedBatch; `pad` is its padding. weights: (T, T, 1 or n)."""
        exists = merge_index != pad
        self.index, self.weights = merge_index, weights.to(dtype)
        self.shares = exists.to(dtype) / exists.sum(-1, keepdim=True).clamp(min=1)  # part j of a step is a mean

    def __call__(self, x: Tensor) -> Tensor:
        index = self.index.flatten(1)
        if len(x) == 1:  # one packed row
            tokens = SelectRows.apply(x, index[0], 2)  # (B, H, G * T * n * S, head_dim)
        else:
            tokens = x.gather(2, index[:, None, :, None].expand(-1, x.shape[1], -1, x.shape[3]))
        tokens = tokens.unflatten(2, self.index.shape[1:])
        parts = (tokens * self.shares[:, None, ..., None]).sum(-2)  # h of each step: (B, H, G, T, n, head_dim)
        if self.weights.shape[2] == 1:  # (T, T, 1)
            slots = (self.weights[..., 0] @ parts.flatten(4)).view_as(parts)
        else:  # (T, T, n)
            slots = (self.weights.permute(2, 0, 1) @ parts.transpose(3, 4)).transpose(3, 4)
        return slots.flatten(2, 4)
