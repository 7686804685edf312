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
    padding = torch.from_numpy(columns(sample=-1, kind=PAD)).to(device)
    weights, real = batch.weights.flatten(), batch.columns.kind != PAD
    logits, rows = [], []
    for step in range(int(batch.columns.step.max()) + 1):
        own = real & (batch.columns.step == step)  # (B, N)
        place = own_first(own)  # (B, L)
        there = own.gather(1, place)
        data = torch.where(there[..., None], batch.columns.data.gather(1, place[..., None].expand(-1, -1, 7)), padding)
        added = Columns(data)
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
        memory = Columns(torch.cat([memory.data, data], 1))
        if (batch.slots.slot & (batch.slots.step == step)).any():
            slots, share = merge(method, memory, batch.slots, step)
            share = share[:, None].to(dtype)  # (B, 1, M, C)
            keys, values = (torch.cat([x, share @ x], 3) for x in (keys, values))
            memory = Columns(torch.cat([memory.data, slots], 1))
        # a later query: of a context, or of an input
        later = Columns.of(columns(step=step + 1, order=2 * width, last=np.arange(2)), device)[None, :, None]
        kept = visible(method, later, memory[:, None]).flatten(0, 1).any(0)  # in any row
        keys, values, memory = keys[:, :, :, kept], values[:, :, :, kept], memory[:, kept]
    order = torch.cat(rows).argsort()
    return torch.cat(logits)[order], torch.cat(rows)[order]


def own_first(own: Tensor) -> Tensor:
    """The places of what is true in each row, in order, and then others up to the longest row: (B, N) -> (B, L)."""
    return torch.argsort(own.long(), dim=1, descending=True, stable=True)[:, : int(own.sum(1).max())]


def merge(method: Method, have: Columns, slots: Columns, step: int) -> tuple[Tensor, Tensor]:
    """The slots of a step, (B, M, 7) with padding, and of what each consists: (B, M, C) shares of the columns held."""
    of_step = slots.slot & (slots.step == step)
    place = own_first(of_step)
    there = of_step.gather(1, place)
    padding = slots.data.new_tensor(columns(sample=-1, kind=PAD))
    new = torch.where(there[..., None], slots.data.gather(1, place[..., None].expand(-1, -1, 7)), padding)
    rate = merge_rate(method, step).to(new.device)  # (1,) or (n,)
    rate = (rate[Columns(new).index.clamp(min=0)] if len(rate) > 1 else rate)[..., None]
    return new, slot_weights(method, have, Columns(new), step, rate)
