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
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from minccm.layout import Batch, power
from minccm.lora import lora_gate
from minccm.methods import Columns, Method, merge_weights, visible
from minccm.model import attention


def dense_mask(method: Method, queries: Columns, keys: Columns) -> Tensor:
    """Who sees whom: bool (B, N, C) for queries (B, N, 7) and keys (B, C, 7)."""
    return visible(method, queries[:, :, None], keys[:, None, :])


BLOCK = 128  # FlexAttention skips blocks of BLOCK x BLOCK that nobody sees


class At:
    """The data of the column at [b, i], as Columns wants it; a field is read when it is asked for."""

    def __init__(self, fields: list[Tensor], b: Tensor, i: Tensor):
        self.fields, self.b, self.i = fields, b, i

    def __getitem__(self, key: tuple) -> Tensor:
        return self.fields[key[-1]][self.b, self.i]


def block_mask(method: Method, queries: Columns, keys: Columns) -> BlockMask:
    """The same for FlexAttention. The predicate is asked only where a block's samples and orders leave it open."""
    n, total = queries.data.shape[1], keys.data.shape[1]
    # int32 and field by field: a kernel asks the predicate for every pair of each block that is seen in part
    of_q, of_k = ([field.contiguous() for field in x.data.int().unbind(-1)] for x in (queries, keys))

    def mask_mod(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return visible(method, Columns(At(of_q, b, q)), Columns(At(of_k, b, k)))

    def blocks(x: Columns) -> Tensor:  # (B, C, 7) -> (B, C / BLOCK, BLOCK, 7), the last one filled up by copies
        copies = x.data[:, -1:].expand(-1, -x.data.shape[1] % BLOCK, -1)
        return torch.cat([x.data, copies], 1).unflatten(1, (-1, BLOCK)).int()

    q, k = blocks(queries), blocks(keys)
    (q_low, q_high), (k_low, k_high) = q.aminmax(dim=2), k.aminmax(dim=2)  # (B, blocks, 7): sample is 0, order 4
    q_low, q_high, k_low, k_high = q_low[:, :, None], q_high[:, :, None], k_low[:, None], k_high[:, None]
    open_ = (k_low[..., 0] <= q_high[..., 0]) & (k_high[..., 0] >= q_low[..., 0]) & (k_low[..., 4] <= q_high[..., 4])
    some, all_ = torch.zeros_like(open_), torch.zeros_like(open_)  # bool (B, blocks of queries, blocks of keys)
    for at in open_.nonzero().split(1024):  # which bounds the memory
        b, i, j = at.unbind(1)
        seen = visible(method, Columns(q[b, i])[:, :, None], Columns(k[b, j])[:, None])  # (1024, BLOCK, BLOCK)
        some[b, i, j], all_[b, i, j] = seen.flatten(1).any(1), seen.flatten(1).all(1)
    if n % BLOCK or total % BLOCK:  # at the edge a kernel needs the mask
        all_[:] = False
    partial, whole = (x[:, None].int() for x in (some & ~all_, all_))
    # the numbers of the blocks that count, first; in order
    numbers = [x.argsort(dim=-1, descending=True, stable=True).int() for x in (partial, whole)]
    return BlockMask.from_kv_blocks(
        partial.sum(-1, dtype=torch.int32),
        numbers[0],
        whole.sum(-1, dtype=torch.int32),
        numbers[1],
        BLOCK,
        mask_mod,
        (n, total),
    )


def pool_matrix(method: Method, slots: Columns, sources: Columns) -> Tensor:
    """P, float64 (..., M, S): the weight in each slot (..., M, 7) of the keys and values of each source (..., S, 7)."""
    slots, across = Columns(slots.data.unsqueeze(-2)), Columns(sources.data.unsqueeze(-3))
    weights = merge_weights(method, int(slots.step.max()) + 1).to(slots.data.device)
    same = (slots.sample == across.sample) & (slots.index == across.index)
    index = slots.index if weights.shape[2] > 1 else 0
    weights = weights[slots.step, across.step.clamp(max=len(weights) - 1), index] * same
    # several tokens of one step and index (the parts of text of the compressive method) share its weight
    alike = sources.step * (int(sources.index.max()) + 2) + sources.index + 1  # (..., S); all of one sample
    counts = torch.zeros(*alike.shape[:-1], int(alike.max()) + 1, dtype=torch.int64, device=alike.device)
    twins = counts.scatter_add(-1, alike, torch.ones_like(alike)).gather(-1, alike)
    return weights / twins.unsqueeze(-2)


class Parallel:
    """The view of a batch in training: [tokens; slots], under a dense mask or FlexAttention's block mask."""

    def __init__(self, method: Method, batch: Batch, dtype: torch.dtype, flex: bool = False):
        keys = Columns(torch.cat([batch.columns.data, batch.slots.data], 1))  # (B, N + G * M, 7)
        self.sources = self.flex = None
        if batch.slots.data.shape[1]:
            samples, self.sources = batch.sources.shape[1], batch.sources.flatten(1)  # (B, G * S)
            rows = torch.arange(len(batch.tokens), device=batch.sources.device)[:, None, None]
            columns = Columns(batch.columns.data[rows, batch.sources])  # (B, G, S, 7)
            self.pool = pool_matrix(method, Columns(batch.slots.data.unflatten(1, (samples, -1))), columns).to(dtype)
        if flex:
            self.flex = block_mask(method, batch.columns, keys)
        else:
            self.mask = dense_mask(method, batch.columns, keys)[:, None]  # (B, 1, N, N + M)

    def extend(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """keys and values (B, H, N, head_dim) -> (B, H, N + G * M, head_dim): [K; P K] and [V; P V]."""
        if self.sources is None:
            return keys, values
        return self._pooled(keys), self._pooled(values)

    def _pooled(self, x: Tensor) -> Tensor:
        if len(x) == 1:  # a packed row
            rows = x.index_select(2, self.sources[0])  # (B, H, G * S, head_dim)
        else:
            rows = x.gather(2, self.sources[:, None, :, None].expand(-1, x.shape[1], -1, x.shape[3]))
        rows = rows.unflatten(2, (self.pool.shape[1], -1)).permute(0, 2, 3, 1, 4)  # (B, G, S, H, head_dim)
        slots = self.pool @ rows.flatten(3)  # (B, G, M, H * head_dim): P has a block for each sample
        return torch.cat([x, slots.flatten(1, 2).unflatten(2, (x.shape[1], -1)).transpose(1, 2)], 2)

    def attend(self, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """queries (B, heads, N, head_dim) over keys and values (B, H, N + M, head_dim) -> (B, heads, N, head_dim)."""
        if self.flex is None:
            return attention(queries, keys, values, self.mask)
        flex = flex_attention if torch.compiler.is_compiling() else _flex()
        return flex(queries, keys, values, block_mask=self.flex, enable_gqa=queries.shape[1] != keys.shape[1])


def predict(model, method: Method, batch: Batch, flex: bool = False, adapted: bool = True) -> tuple[Tensor, Tensor]:
    """The parallel pass of a batch: logits (R, vocab_size), and rows (R,), the places (of B * N) they predict from.

    flex: FlexAttention instead of a dense mask; as that is compiled for each shape, places of padding, of weight 0,
    make R a power of two. adapted: False leaves the model's adapter out.
    """
    method, comp = method.of(model), batch.comp
    rows = batch.weights.flatten().nonzero()[:, 0]
    if flex:
        rows = F.pad(rows, (0, power(len(rows), 128) - len(rows)), value=batch.tokens.numel() - 1)
    gate = lora_gate(comp, method.conditional, adapted)
    if method.name == "full" and not batch.packed:
        view = None  # plain causal attention, which needs no mask: padding stands behind the text
    else:
        view = Parallel(method, batch, model.embed_tokens.weight.dtype, flex)
    return model(batch.tokens, batch.positions, view, comp, gate, rows), rows


@functools.cache
def _flex():  # compiled once, when first used
    return torch.compile(flex_attention, dynamic=False)
