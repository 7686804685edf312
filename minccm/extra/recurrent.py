"""Recurrent training: backpropagation through time, as RMT and AutoCompressor train (paper: table 22).

It is here to compare with parallel training. The logits and gradients are those of parallel.forward_parallel, but the
time steps run one after another. After each step, its memory slots are merged, and pairs that are hidden
from all later queries are dropped. All samples of a batch go through a step together.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from minccm.methods import PAD, TEXT, Method, TokenInfo, attention_mask, merge_rate_at
from minccm.model import attend
from minccm.sequence import LATEST, Sequence


class BatchMemory(NamedTuple):
    """Mem(t) of B samples, padded to M pairs each."""

    keys: Tensor  # (layers, B, kv_heads, M, head_dim), rotated
    values: Tensor  # (layers, B, kv_heads, M, head_dim)
    info: TokenInfo  # (B, M)

    def append(self, keys: Tensor, values: Tensor, info: TokenInfo) -> "BatchMemory":
        """With more pairs: keys and values (layers, B, kv_heads, N, head_dim), info (B, N)."""
        keys = torch.cat([self.keys, keys.to(self.keys.dtype)], 3)
        values = torch.cat([self.values, values.to(self.values.dtype)], 3)
        return BatchMemory(keys, values, TokenInfo.cat([self.info, info]))

    def select(self, keep: Tensor) -> "BatchMemory":
        """With only the pairs where keep, bool (B, M), is True."""
        index, info = select(self.info, keep)
        index = index[None, :, None, :, None].expand(*self.keys.shape[:3], -1, self.keys.shape[4])
        return BatchMemory(self.keys.gather(3, index), self.values.gather(3, index), info)


class BatchStepKV:
    """Keys and values of one step of B samples: their memories, then the step's own, recorded layer by layer."""

    def __init__(self, method: Method, memory: BatchMemory, info: TokenInfo):
        self.memory, self.keys, self.values = memory, [], []
        self.mask = attention_mask(method, info, TokenInfo.cat([memory.info, info]))[:, None]  # bool (B, 1, N, M + N)

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """q (B, heads, N, head_dim), k and v (B, kv_heads, N, head_dim) -> (B, heads, N, head_dim)."""
        self.keys.append(k)
        self.values.append(v)
        k = torch.cat([self.memory.keys[layer].to(k.dtype), k], 2)
        v = torch.cat([self.memory.values[layer].to(v.dtype), v], 2)
        return attend(q, k, v, self.mask)


def forward_recurrent(model, method: Method, batch: Sequence) -> Tensor:
    """Logits (R, vocab_size) of a batch, one time step after another: the same as parallel.forward_parallel."""
    method, config, weight = method.bind(model), model.config, model.embed_tokens.weight
    B, N = batch.tokens.shape
    # merged memory is fp32 at least, as in memory.Memory.empty
    dtype = torch.promote_types(weight.dtype, torch.float32) if method.merge_rate else weight.dtype
    nothing = weight.new_empty(config.n_layers, B, config.n_kv_heads, 0, config.head_dim, dtype=dtype)
    memory = BatchMemory(nothing, nothing, batch.info.map(lambda field: field[:, :0]))
    row_starts = N * torch.arange(B, device=weight.device)[:, None]
    logits, places = [], []  # of the tokens whose next token the loss covers; places in the flattened batch
    for step in range(int(batch.info.step.max()) + 1):
        index, info = select(batch.info, batch.info.step == step)  # (B, L): the tokens of this step
        tokens, positions, loss_weights = (
            field.gather(1, index) for field in (batch.tokens, batch.positions, batch.loss_weights)
        )
        at = (loss_weights > 0) & (info.kind != PAD)
        kv = BatchStepKV(method, memory, info)
        logits.append(model(tokens, positions, kv, method.lora_mask(info), at))
        places.append((row_starts + index)[at])

        memory = memory.append(torch.stack(kv.keys), torch.stack(kv.values), info)
        memory = merge(method, memory, select(batch.slots, batch.slots.is_slot & (batch.slots.step == step))[1], step)
        # two later queries, one in a context and one in an input: (kind, step, slot, order, question)
        later = TokenInfo.from_rows([(TEXT, step + 1, -1, N, question) for question in (0, 1)], weight.device)
        memory = memory.select(attention_mask(method, later, memory.info).any(1))
    return torch.cat(logits)[torch.cat(places).argsort()]


def select(info: TokenInfo, keep: Tensor) -> tuple[Tensor, TokenInfo]:
    """The tokens of each row where keep, bool (B, N), is True, in order, padded to the longest row.

    Returns their places in the row, int64 (B, L), and their info (B, L).
    """
    index = keep.long().argsort(dim=1, descending=True, stable=True)[:, : int(keep.sum(1).max())]
    real = keep.gather(1, index)
    padding = dict(kind=PAD, step=-1, slot=-1, order=LATEST, question=0)
    kept = {name: getattr(info, name).gather(1, index).where(real, value) for name, value in padding.items()}
    return index, TokenInfo(**kept)


def merge(method: Method, memory: BatchMemory, slots: TokenInfo, step: int) -> BatchMemory:
    """Adds the memory slots (B, M) of this step, as memory.Memory.merge does for one conversation."""
    if not len(slots):
        return memory
    rate = merge_rate_at(method, step).to(slots.slot.device)  # a_t: (1,) or (n,)
    rate = rate[slots.slot.clamp(0, len(rate) - 1)][..., None]  # (B, M, 1)
    new = slots.map(lambda field: field[:, :, None])
    old = memory.info.map(lambda field: field[:, None, :])
    same_slot = (new.slot == old.slot) & new.is_slot  # (B, M, C), for the C pairs that the memory holds
    previous = same_slot & old.is_slot & (old.step == step - method.stride)
    this_step = same_slot & ~old.is_slot & (old.step == step - method.delay)
    mean = this_step.double() / this_step.sum(-1, keepdim=True).clamp(min=1)
    weights = ((1 - rate) * previous + rate * mean)[:, None].to(memory.keys.dtype)  # (B, 1, M, C)
    return memory.append(weights @ memory.keys, weights @ memory.values, slots)
