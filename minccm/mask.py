"""The parallel pass: the whole recursion of compression as one forward pass under one mask (paper: algorithm 1).

Merged memory is attended as extra columns, behind those of the tokens:

    K' = [K ; P K],   V' = [V ; P V]

Each row of P is a weighted mean over COMP tokens: slot (t, j) averages COMP token j of the steps up to t, with the
weights that the recursion Mem(t) = (1 - a_t) Mem(t-1) + a_t h(t) gives them. Concatenated memory needs no P: there the
COMP tokens' own columns are the memory. Masks are drawn from methods.visible alone.
"""

import functools

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

from minccm.layout import Batch
from minccm.lora import lora_gate
from minccm.methods import Columns, Method, merge_weights, visible


def dense_mask(method: Method, queries: Columns, keys: Columns) -> Tensor:
    """Who sees whom: bool (B, N, C) for queries (B, N, 7) and keys (B, C, 7)."""
    return visible(method, queries[:, :, None], keys[:, None, :])


def block_mask(method: Method, queries: Columns, keys: Columns) -> BlockMask:
    """The same for FlexAttention, which skips blocks of 128 x 128 that nobody sees."""

    def mask_mod(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return visible(method, queries[b, q], keys[b, k])

    batch, n = queries.data.shape[:2]
    # not compiled: over [tokens; slots] the compiler takes minutes, plain evaluation takes milliseconds
    return create_block_mask(mask_mod, batch, None, n, keys.data.shape[1], device=queries.data.device, _compile=False)


def pool_matrix(method: Method, slots: Columns, sources: Columns) -> Tensor:
    """P, float64 (B, M, S): the weight in each slot (B, M, 7) of the keys and values of each source token (B, S, 7)."""
    slots, across = slots[:, :, None], sources[:, None, :]
    weights = merge_weights(method, int(slots.step.max()) + 1).to(slots.data.device)
    same = (slots.sample == across.sample) & (slots.index == across.index)
    index = slots.index if weights.shape[2] > 1 else 0
    weights = weights[slots.step, across.step.clamp(max=len(weights) - 1), index] * same
    # several tokens of one step and index (the parts of text of the compressive method) share its weight
    twins = (sources[:, :, None].data[..., :4] == across.data[..., :4]).all(-1).sum(-1)  # sample, kind, step, index
    return weights / twins[:, None, :]


class Parallel:
    """The view of a batch in training: [tokens; slots], under a dense mask or FlexAttention's block mask."""

    def __init__(self, method: Method, batch: Batch, dtype: torch.dtype, flex: bool = False):
        keys = Columns(torch.cat([batch.columns.data, batch.slots.data], 1))  # (B, N + M, 7)
        self.sources = self.flex = None
        if batch.slots.data.shape[1]:
            self.sources = batch.sources  # (B, S)
            columns = Columns(batch.columns.data.gather(1, batch.sources[..., None].expand(-1, -1, 7)))
            self.pool = pool_matrix(method, batch.slots, columns).to(dtype)  # (B, M, S)
        if flex:
            self.flex = block_mask(method, batch.columns, keys)
        else:
            self.mask = dense_mask(method, batch.columns, keys)[:, None]  # (B, 1, N, N + M)

    def extend(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """keys and values (B, H, N, head_dim) -> (B, H, N + M, head_dim): [K; P K] and [V; P V]."""
        if self.sources is None:
            return keys, values
        return self._pooled(keys), self._pooled(values)

    def _pooled(self, x: Tensor) -> Tensor:
        index = self.sources[:, None, :, None].expand(-1, x.shape[1], -1, x.shape[3])
        return torch.cat([x, self.pool[:, None] @ x.gather(2, index)], 2)  # (B, 1, M, S) @ (B, H, S, head_dim)

    def attend(self, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """queries (B, heads, N, head_dim) over keys and values (B, H, N + M, head_dim) -> (B, heads, N, head_dim)."""
        gqa = queries.shape[1] != keys.shape[1]
        if self.flex is not None:
            return _flex()(queries, keys, values, block_mask=self.flex, enable_gqa=gqa)
        return F.scaled_dot_product_attention(queries, keys, values, self.mask, enable_gqa=gqa)


def predict(model, method: Method, batch: Batch, flex: bool = False, adapted: bool = True) -> tuple[Tensor, Tensor]:
    """The parallel pass of a batch: logits (R, vocab_size), and rows (R,), the places (of B * N) they predict from.

    flex: FlexAttention instead of a dense mask. adapted: False leaves the model's adapter out.
    """
    method, rows = method.of(model), batch.weights.flatten().nonzero()[:, 0]
    gate = lora_gate(batch.comp, method.conditional, adapted)
    if method.name == "full" and not batch.packed:
        view = None  # plain causal attention, which needs no mask: padding stands behind the text
    else:
        view = Parallel(method, batch, model.embed_tokens.weight.dtype, flex)
    return model(batch.tokens, batch.positions, view, batch.comp, gate, rows), rows


@functools.cache
def _flex():  # compiled once, when first used
    return torch.compile(flex_attention, dynamic=False)
