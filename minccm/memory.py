"""The compressed context memory Mem(t): the keys and values that later steps may still attend to, and nothing else.

Concatenation, merging and eviction are not special cases. After each step, its keys and values are appended, its memory
slots are merged, and every pair that the attention rule hides from all later queries is dropped. So full context keeps
all text, ccm-concat keeps n pairs a step, and ccm-merge keeps n pairs.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from minccm.methods import Method, TokenInfo, attention_mask, merge_rate_at


@dataclass(frozen=True)
class Memory:
    """Mem(t) of one conversation, M pairs."""

    keys: Tensor  # (layers, kv_heads, M, head_dim), rotated
    values: Tensor  # (layers, kv_heads, M, head_dim)
    info: TokenInfo  # (M,)
    step: int = 0  # the next time step
    tokens: int = 0  # text and COMP tokens read so far
    text: int = 0  # text tokens read so far: the next position

    @classmethod
    def empty(cls, config, method: Method, dtype: torch.dtype, device="cpu") -> "Memory":
        """Mem(0). Merged memory is fp32 at least: in bf16, a running mean stops moving after some hundred steps."""
        dtype = torch.promote_types(dtype, torch.float32) if method.merge_rate else dtype
        nothing = torch.empty(config.n_layers, config.n_kv_heads, 0, config.head_dim, dtype=dtype, device=device)
        return cls(nothing, nothing, TokenInfo.from_rows([], device))

    def __len__(self) -> int:
        """KV pairs held."""
        return self.keys.shape[2]

    @property
    def nbytes(self) -> int:
        """Bytes of keys and values."""
        return self.keys.nbytes + self.values.nbytes

    def append(self, keys: Tensor, values: Tensor, info: TokenInfo) -> "Memory":
        """With the pairs of more tokens or slots: keys and values (layers, kv_heads, N, head_dim), info (N,)."""
        keys = torch.cat([self.keys, keys.to(self.keys.dtype)], 2)
        values = torch.cat([self.values, values.to(self.values.dtype)], 2)
        return replace(self, keys=keys, values=values, info=TokenInfo.cat([self.info, info]))

    def select(self, keep: Tensor) -> "Memory":
        """With only the pairs where keep, bool (M,), is True."""
        return replace(self, keys=self.keys[:, :, keep], values=self.values[:, :, keep], info=self.info[keep])

    def merge(self, method: Method, slots: TokenInfo) -> "Memory":
        """Adds the slots of this step: slot j is (1 - a_t) times the previous slot j, plus a_t times COMP token j.

        Where several tokens have the same j (pooled text), their mean takes the place of COMP token j.
        """
        rate = merge_rate_at(method, self.step).to(self.keys.device)[:, None]  # a_t: (1 or n, 1)
        new, old = slots.map(lambda field: field[:, None]), self.info.map(lambda field: field[None])
        same_slot = new.slot == old.slot  # (n, M)
        previous = same_slot & old.is_slot & (old.step == self.step - method.stride)
        this_step = same_slot & ~old.is_slot & (old.step == self.step - method.delay)
        mean = this_step.double() / this_step.sum(-1, keepdim=True).clamp(min=1)
        weights = ((1 - rate) * previous + rate * mean).to(self.keys.dtype)  # (n, M)
        return self.append(weights @ self.keys, weights @ self.values, slots)

    def update(
        self, method: Method, keys: Tensor, values: Tensor, info: TokenInfo, slots: TokenInfo, text: int
    ) -> "Memory":
        """g_update: Mem(t) from Mem(t-1) and the keys and values of step t, whose first `text` tokens are text."""
        memory = self.append(keys, values, info)
        if len(slots):
            memory = memory.merge(method, slots)
        tokens, step = self.tokens + len(info), self.step + 1
        # two later queries, one in a context and one in an input: (kind, step, slot, order, question)
        later = TokenInfo.from_rows([(0, step, -1, tokens, 0), (0, step, -1, tokens, 1)], info.kind.device)
        memory = memory.select(attention_mask(method, later, memory.info).any(0))
        return replace(memory, step=step, tokens=tokens, text=self.text + text)
