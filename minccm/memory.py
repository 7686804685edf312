"""The memory: keys and values of what later steps may still see, and nothing else (paper: Mem(t)).

Mem(t) is a list of columns. Concatenation, merging and eviction are no cases here: after a step its own columns are
added, its slots are merged, and every column that methods.visible hides from later steps is dropped. So full context
keeps all text, ccm-concat n columns a step, ccm-merge n columns in all.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from minccm.config import LlamaConfig
from minccm.methods import Columns, Method, columns, visible


@dataclass
class Memory:
    """Mem(t), for one conversation."""

    keys: Tensor  # (layers, kv heads, M, head_dim), rotated
    values: Tensor  # (layers, kv heads, M, head_dim)
    columns: Columns  # (M, 7)
    step: int = 0  # the time step to come
    position: int = 0  # text tokens so far
    tokens: int = 0  # text and COMP tokens so far

    @classmethod
    def empty(cls, config: LlamaConfig, dtype: torch.dtype, device) -> "Memory":
        nothing = torch.empty(config.n_layers, config.n_kv_heads, 0, config.head_dim, dtype=dtype, device=device)
        return cls(nothing, nothing, Columns.of(columns()[:0], device))

    def __len__(self) -> int:
        """KV pairs held."""
        return self.keys.shape[2]

    @property
    def nbytes(self) -> int:
        return self.keys.nbytes + self.values.nbytes

    def extended(self, keys: Tensor, values: Tensor, added: Columns) -> "Memory":
        """With more columns behind those there are."""
        data = torch.cat([self.columns.data, added.data])
        keys, values = torch.cat([self.keys, keys], 2), torch.cat([self.values, values], 2)
        return Memory(keys, values, Columns(data), self.step, self.position, self.tokens)

    def updated(
        self, method: Method, keys: Tensor, values: Tensor, added: Columns, slots: Columns, text: int
    ) -> "Memory":
        """g_update: Mem(t) from Mem(t-1) and the columns of step t.

        keys, values (layers, kv heads, N, head_dim) and added (N, 7) are of the step's N tokens, `text` of them text;
        slots (M, 7) are those that the step brings.
        """
        memory = self.extended(keys, values, added)
        if len(slots.data):
            memory = memory.merged(method, slots)
        # a later query: of a context, or of an input
        later = columns(step=self.step + 1, order=self.tokens + len(added.data), last=np.arange(2))
        kept = visible(method, Columns.of(later, keys.device)[:, None], memory.columns).any(0)
        return Memory(
            memory.keys[:, :, kept],
            memory.values[:, :, kept],
            memory.columns[kept],
            self.step + 1,
            self.position + text,
            self.tokens + len(added.data),
        )

    def merged(self, method: Method, slots: Columns) -> "Memory":
        """With the slots of this step: (1 - a) times the last step's slot j plus a times the mean of what goes in."""
        have, rate = self.columns, method.rate(self.step - method.delay + 1)
        new = slots[:, None]  # (M, 1, 7) against (C, 7)
        fresh = (have.kind != new.kind) & (have.index == new.index) & (have.step == self.step - method.delay)
        before = (have.kind == new.kind) & (have.index == new.index) & (have.step == self.step - 1)
        fresh, before = fresh.to(self.keys.dtype), before.to(self.keys.dtype)
        weights = rate * fresh / fresh.sum(1, keepdim=True).clamp(min=1) + (1 - rate) * before  # (M, C)
        return self.extended(weights @ self.keys, weights @ self.values, slots)
