"""The parallel pass: the whole recursion of compression as one forward pass under one mask (paper: algorithm 1).

Merged memory is attended as extra columns, behind those of the tokens:

    K' = [K ; P K],   V' = [V ; P V]

Each row of P is a weighted mean over COMP tokens: slot (t, j) averages COMP token j of the steps up to t, with the
weights that the recursion Mem(t) = (1 - a_t) Mem(t-1) + a_t h(t) gives them (methods.merge_weights). Concatenated
memory needs no P: there the COMP tokens' own columns are the memory. Masks are drawn from methods.visible alone.

Two parts of a row cost less than the rest (layout.Batch). Text that no memory comes before is the frozen model's own:
`first` is read ahead, without a gradient. And the text of a context is read by COMP tokens, for the last time where
they get their own keys and values: the last block does without it, and has `last` alone.
"""

import copy
import functools

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from minccm.layout import Batch
from minccm.lora import lora_gate
from minccm.methods import Columns, Method, merge_weights, visible
from minccm.model import Last, attention
from minccm.rows import Rows


def dense_mask(method: Method, queries: Columns, keys: Columns) -> Tensor:
    """Who sees whom: bool (B, N, C) for queries (B, N, 7) and keys (B, C, 7)."""
    return visible(method, queries[:, :, None], keys[:, None, :])


BLOCK = 128  # FlexAttention skips blocks of BLOCK x BLOCK that nobody sees


def seen_blocks(method: Method, queries: Columns, keys: Columns) -> tuple[Tensor, ...]:
    """Which blocks of keys each block of queries sees in part, and which as a whole, as FlexAttention wants it.

    int32: how many in part (B, 1, blocks of queries), their numbers in order, with the others behind (B, 1, blocks of
    queries, blocks of keys); and both again of those that are seen as a whole. Then who sees whom there, a bit each:
    uint8 (B, N / 8, C), both filled up to whole blocks, where bit i of [b, r, k] says whether query 8 r + i sees k.
    The predicate is asked only where a block's samples and orders leave it open.
    """
    n, total = queries.data.shape[1], keys.data.shape[1]

    def blocks(x: Columns) -> Tensor:  # (B, C, 7) -> (B, C / BLOCK, BLOCK, 7), the last one filled up by copies
        copies = x.data[:, -1:].expand(-1, -x.data.shape[1] % BLOCK, -1)
        return torch.cat([x.data, copies], 1).unflatten(1, (-1, BLOCK))

    q, k = blocks(queries), blocks(keys)
    (q_low, q_high), (k_low, k_high) = q.aminmax(dim=2), k.aminmax(dim=2)  # (B, blocks, 7): sample is 0, order 4
    q_low, q_high, k_low, k_high = q_low[:, :, None], q_high[:, :, None], k_low[:, None], k_high[:, None]
    open_ = (k_low[..., 0] <= q_high[..., 0]) & (k_high[..., 0] >= q_low[..., 0]) & (k_low[..., 4] <= q_high[..., 4])
    some, all_ = torch.zeros_like(open_), torch.zeros_like(open_)  # bool (B, blocks of queries, blocks of keys)
    bits = torch.zeros(*q.shape[:2], BLOCK // 8, k.shape[1], BLOCK, dtype=torch.uint8, device=q.device)
    powers = 2 ** torch.arange(8, dtype=torch.uint8, device=q.device)[:, None]
    for at in open_.nonzero().split(1024):  # which bounds the memory
        b, i, j = at.unbind(1)
        seen = visible(method, Columns(q[b, i])[:, :, None], Columns(k[b, j])[:, None])  # (1024, BLOCK, BLOCK)
        some[b, i, j], all_[b, i, j] = seen.flatten(1).any(1), seen.flatten(1).all(1)
        bits[b, i, :, j] = (seen.unflatten(1, (-1, 8)) * powers).sum(2, dtype=torch.uint8)  # (1024, BLOCK / 8, BLOCK)
    if n % BLOCK or total % BLOCK:  # at the edge a kernel needs the mask
        all_[:] = False
    found = []
    for which in (some & ~all_, all_):
        which = which[:, None].int()
        found += [which.sum(-1, dtype=torch.int32), which.argsort(dim=-1, descending=True, stable=True).int()]
    return *found, bits.flatten(3).flatten(1, 2)


def block_mask(method: Method, queries: Columns, keys: Columns, blocks: tuple[Tensor, ...] | None = None) -> BlockMask:
    """dense_mask for FlexAttention. blocks: as of seen_blocks, if they are known.

    A kernel looks up what the predicate has said: to ask it for each pair, in each layer and head, takes longer.
    """
    *found, bits = blocks or seen_blocks(method, queries, keys)

    def mask_mod(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return bits[b, q >> 3, k] & (1 << (q & 7)) != 0

    return BlockMask.from_kv_blocks(*found, BLOCK, mask_mod, (queries.data.shape[1], keys.data.shape[1]))


def placed_weights(method: Method, steps: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """merge_weights (steps, steps, 1 or n), where they are needed."""
    return merge_weights(method, steps).to(device, dtype)


fixed_weights = functools.lru_cache(64)(placed_weights)  # of a method that learns none: made and sent once


class Parallel:
    """The view of a batch in training: [tokens; slots], under a dense mask or FlexAttention's block mask.

    P is not written out. A slot's weight in a COMP token depends on their steps alone (and on their common index, where
    slots have rates of their own), so P K is a product by (T, T) of the keys put in order of step and index.
    """

    before: tuple[Tensor, Tensor] | None = None  # keys and values (B, H, N', head_dim) of batch.first

    def __init__(self, method: Method, batch: Batch, dtype: torch.dtype, flex: bool = False, blocks=None, weights=None):
        keys = all_columns(method, batch)
        self.sources = self.flex = None
        if method.rate and batch.slots.data.shape[1]:
            self.sources, steps = batch.sources, batch.sources.shape[2]  # (B, G, T, n, S)
            there = self.sources != batch.tokens.shape[1] - 1  # the last place of a row is padding
            self.shares = there.to(dtype) / there.sum(-1, keepdim=True).clamp(min=1)  # a step's part is their mean
            if weights is None:
                make = placed_weights if method.learned else fixed_weights
                weights = make(method, steps, keys.data.device, dtype)
            self.weights = weights.to(dtype)  # (T, T, 1 or n)
        if flex:
            self.flex = block_mask(method, batch.columns, keys, blocks)
        else:
            self.mask = dense_mask(method, batch.columns, keys)[:, None]  # (B, 1, N, N + M)

    def extend(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """keys and values (B, H, N, head_dim) -> (B, H, N + M, head_dim): [K; P K] and [V; P V], M = G * T * n.

        Between them stands what is `before`.
        """
        extended = []
        for i, x in enumerate((keys, values)):
            parts = [x] if self.before is None else [x, self.before[i]]
            parts += [] if self.sources is None else [self._pooled(x)]
            extended.append(torch.cat(parts, 2) if len(parts) > 1 else x)
        return tuple(extended)

    def _pooled(self, x: Tensor) -> Tensor:  # (B, H, N, head_dim) -> P x (B, H, M, head_dim)
        places = self.sources.flatten(1)
        if len(x) == 1:  # a packed row
            found = Rows.apply(x, places[0], 2)  # (B, H, G * T * n * S, head_dim)
        else:
            found = x.gather(2, places[:, None, :, None].expand(-1, x.shape[1], -1, x.shape[3]))
        found = found.unflatten(2, self.sources.shape[1:])
        parts = (found * self.shares[:, None, ..., None]).sum(-2)  # (B, H, G, T, n, head_dim), what a step brings
        if self.weights.shape[2] == 1:  # (T, T, 1)
            slots = (self.weights[..., 0] @ parts.flatten(4)).view_as(parts)
        else:  # (T, T, n)
            slots = (self.weights.permute(2, 0, 1) @ parts.transpose(3, 4)).transpose(3, 4)
        return slots.flatten(2, 4)

    def attend(self, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """queries (B, heads, N, head_dim) over keys and values (B, H, N + M, head_dim) -> (B, heads, N, head_dim)."""
        if self.flex is None:
            return attention(queries, keys, values, self.mask)
        flex = flex_attention if torch.compiler.is_compiling() else _flex()
        return flex(queries, keys, values, block_mask=self.flex, enable_gqa=queries.shape[1] != keys.shape[1])


class Keeping:
    """The view of one layer, which keeps its keys and values for what is read after."""

    def __init__(self, view: Parallel):
        self.view, self.attend = view, view.attend

    def extend(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        self.kept = keys, values
        return keys, values

    def after(self, view: Parallel) -> Parallel:
        """`view` of the same layer, with these keys and values before it."""
        view = copy.copy(view)
        view.before = self.kept
        return view


def blocks_of(method: Method, batch: Batch) -> tuple:
    """seen_blocks of a batch, of what is read before it, and of what its last block is asked for, if there are such."""
    parts = batch, batch.first, batch.last
    return tuple(part and seen_blocks(method, part.columns, all_columns(method, part)) for part in parts)


def all_columns(method: Method, batch: Batch) -> Columns:
    """What there is to attend to: columns (B, N + M, 7) of the tokens, and of the slots behind them, if it has any.

    Between them stand those of batch.first, if there is one.
    """
    parts = batch.columns, batch.first and batch.first.columns, batch.slots if method.rate else None
    return Columns(torch.cat([part.data for part in parts if part], 1))


def predict(
    model, method: Method, batch: Batch, flex: bool = False, adapted: bool = True, blocks=None, weights=None
) -> tuple[Tensor, Tensor]:
    """The parallel pass of a batch: logits (R, vocab_size), and rows (R,), the places (of B * N) they predict from.

    flex: FlexAttention instead of a dense mask, for a batch of one row; as that is compiled for each shape, R is the
    batch's own, and some rows may be padding, of weight 0. adapted: False leaves the model's adapter out. blocks: what
    blocks_of gives, if it is known. weights (T, T, 1 or n): merge by these instead of merge_weights.
    """
    method = method.of(model)

    def view_of(part: Batch, blocks) -> Parallel:
        return Parallel(method, part, model.embed_tokens.weight.dtype, flex, blocks, weights)

    def rows_of(part: Batch) -> Tensor:
        return part.predicting[0] if flex else part.weights.flatten().nonzero()[:, 0]

    def gate_of(part: Batch) -> Tensor | bool | None:
        return lora_gate(part.comp, method.conditional, adapted)

    blocks, of_first, of_last = blocks or (None,) * 3
    causal = method.name == "full" and not batch.packed  # which needs no mask: padding stands behind the text
    view = None if causal else view_of(batch, blocks)
    if first := batch.first:
        ahead = view_of(first, of_first)
        keeping = [Keeping(ahead) for _ in model.layers]
        with torch.no_grad():
            model(first.tokens, first.positions, keeping)
        view = [kept.after(view) for kept in keeping]
    rows = asked = rows_of(batch)
    last = None
    if batch.last and len(model.layers) > 1:
        part, asked = batch.last, rows_of(batch.last)
        last = Last(batch.flat(batch.last_places), part.positions, view_of(part, of_last), gate_of(part))
    return model(batch.tokens, batch.positions, view, batch.comp, gate_of(batch), asked, last), rows


@functools.cache
def _flex():  # compiled once, when first used
    return torch.compile(flex_attention, dynamic=False)
