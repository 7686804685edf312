"""Recurrent training: backpropagation through time, as RMT and AutoCompressor train (paper: table 22).

Here it is to compare with: the same logits and gradients as mask.predict, step after step instead of in one pass. A
step's tokens see the memory that is left of the steps before; after it, slots are merged and what no later step sees
is dropped. All samples of a batch go through a step together.
"""

import numpy as np
import torch
from torch import Tensor

from minccm.layout import Batch
from minccm.lora import lora_gate
from minccm.memory import slot_weights
from minccm.methods import PAD, Columns, Method, columns, merge_rate, visible
from minccm.model import attention


class Step:
    """The view of one step: [memory; the step's own tokens]. It catches the step's keys and values."""

    def __init__(self, method: Method, keys: Tensor, values: Tensor, memory: Columns, added: Columns):
        self.memory, self.keys, self.values = (keys, values), [], []  # (layers, B, kv heads, M, head_dim)
        seen = Columns(torch.cat([memory.data, added.data], 1))
        self.mask = visible(method, added[:, :, None], seen[:, None])[:, None]  # (B, 1, N, M + N)

    def extend(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        self.keys.append(keys)
        self.values.append(values)
        return torch.cat([self.memory[0][layer], keys], 2), torch.cat([self.memory[1][layer], values], 2)

    def attend(self, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        return attention(queries, keys, values, self.mask)


def predict_recurrent(model, method: Method, batch: Batch) -> tuple[Tensor, Tensor]:
    """As mask.predict, of a batch with one sample a row: logits (R, vocab_size), and rows (R,), their places."""
    method, config = method.of(model), model.config
    device, dtype = batch.tokens.device, model.embed_tokens.weight.dtype
    rows_of, width = batch.tokens.shape
    shape = config.n_layers, rows_of, config.n_kv_heads, 0, config.head_dim
    keys = values = torch.zeros(shape, dtype=dtype, device=device)
    memory = Columns(batch.columns.data[:, :0])
    weights, real = batch.weights.flatten(), batch.columns.kind != PAD
    logits, rows = [], []
    for step in range(int(batch.columns.step.max()) + 1):
        added, place, there = taken(batch.columns, real & (batch.columns.step == step))  # (B, L, 7), (B, L), (B, L)
        flat = (torch.arange(rows_of, device=device)[:, None] * width + place).flatten()  # places in the batch
        wanted = (there.flatten() & (weights[flat] > 0)).nonzero()[:, 0]
        comp = added.comp.flatten().nonzero()[:, 0]
        view = Step(method, keys, values, memory, added)
        gate = lora_gate(comp, method.conditional, True)
        tokens, positions = (x.gather(1, place) for x in (batch.tokens, batch.positions))
        logits.append(model(tokens, positions, view, comp, gate, wanted))
        rows.append(flat[wanted])

        keys, values = (
            torch.cat([old, torch.stack(new)], 3) for old, new in ((keys, view.keys), (values, view.values))
        )
        memory = Columns(torch.cat([memory.data, added.data], 1))
        if (batch.slots.slot & (batch.slots.step == step)).any():
            slots, share = merge(method, memory, batch.slots, step)
            share = share[:, None].to(dtype)  # (B, 1, M, C)
            keys, values = (torch.cat([x, share @ x], 3) for x in (keys, values))
            memory = Columns(torch.cat([memory.data, slots.data], 1))
        # a later query: of a context, or of an input
        later = Columns.of(columns(step=step + 1, order=2 * width, question=np.arange(2)), device)[None, :, None]
        kept = visible(method, later, memory[:, None]).any(1) & (memory.kind != PAD)
        memory, place, _ = taken(memory, kept)  # row by row: else each would hold what any keeps
        place = place[None, :, None, :, None].expand(*shape[:3], -1, shape[4])
        keys, values = keys.gather(3, place), values.gather(3, place)
    order = torch.cat(rows).argsort()
    return torch.cat(logits)[order], torch.cat(rows)[order]


def taken(have: Columns, which: Tensor) -> tuple[Columns, Tensor, Tensor]:
    """Those of the columns (B, C, 7) that `which` (B, C) tells, in order, and then padding up to the longest row.

    Returns them (B, L, 7), their places, and where they are no padding, both (B, L).
    """
    place = torch.argsort(which.long(), dim=1, descending=True, stable=True)[:, : int(which.sum(1).max())]
    there = which.gather(1, place)
    padding = have.data.new_tensor(columns(sample=-1, kind=PAD))
    data = torch.where(there[..., None], have.data.gather(1, place[..., None].expand(-1, -1, 7)), padding)
    return Columns(data), place, there


def merge(method: Method, have: Columns, slots: Columns, step: int) -> tuple[Columns, Tensor]:
    """The slots of a step, (B, M, 7) with padding, and of what each consists: (B, M, C) shares of the columns held."""
    new, _, _ = taken(slots, slots.slot & (slots.step == step))
    rate = merge_rate(method, step).to(new.data.device)  # (1,) or (n,)
    rate = (rate[new.index.clamp(min=0)] if len(rate) > 1 else rate)[..., None]
    return new, slot_weights(method, have, new, step, rate)
