"""The memory: keys and values of what later steps may still see, and nothing else (paper: Mem(t)).

Mem(t) is a list of columns. Concatenation, merging and eviction are no cases here: after a step its own columns are
added, its slots are merged, and every column that methods.visible hides from later steps is dropped. So full context
keeps all text, ccm-concat n columns a step, ccm-merge n columns in all.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from minccm.config import LlamaConfig
from minccm.files import write_whole
from minccm.methods import PAD, Columns, Method, columns, merge_rate, visible


@dataclass
class Memory:
    """Mem(t), for one conversation."""

    keys: Tensor  # (layers, kv heads, M, head_dim), rotated
    values: Tensor  # (layers, kv heads, M, head_dim)
    columns: Columns  # (M, 7)
    step: int = 0  # the time step to come
    position: int = 0  # text tokens so far
    tokens: int = 0  # text and COMP tokens so far
    means: Tensor | None = None  # float64 (2, layers, kv heads, slots, head_dim): the slots, before they are rounded

    @classmethod
    def empty(cls, config: LlamaConfig, dtype: torch.dtype, device) -> "Memory":
        """Mem(0): no pairs."""
        nothing = torch.empty(config.n_layers, config.n_kv_heads, 0, config.head_dim, dtype=dtype, device=device)
        return cls(nothing, nothing, Columns.of(columns()[:0], device))

    def save(self, path: str | Path, **about) -> None:
        """Writes a safetensors file; `about`, anything that JSON can hold, goes along as it is."""
        tensors = {"keys": self.keys, "values": self.values, "columns": self.columns.data}
        tensors = {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}
        about |= {"step": self.step, "position": self.position, "tokens": self.tokens}
        data = safetensors.torch.save(tensors, {"about": json.dumps(about)})
        write_whole(Path(path), lambda beside: beside.write_bytes(data))

    def load(self, path: str | Path, method: Method, n: int, made_for: dict) -> tuple["Memory", dict]:
        """The memory of a file, of the shape, dtype and device of this one, and what was written about it.

        Nothing in a file is executed or believed: raises ValueError, in one line, if what was written about it is not
        what `made_for` says, or if it is no memory that n COMP tokens of `method` can have left behind.
        """
        try:
            with safe_open(path, framework="pt") as file:
                about = json.loads(file.metadata()["about"])
                keys, values, data = (file.get_tensor(name).clone() for name in ("keys", "values", "columns"))
            step, position, tokens = (about[name] for name in ("step", "position", "tokens"))
            other = [name for name, value in made_for.items() if about.get(name) != value]
        except FileNotFoundError:
            raise ValueError(f"{path} is not there") from None
        except (SafetensorError, OSError, RuntimeError, ValueError, KeyError, TypeError):  # Runtime: nested too deep
            raise ValueError(f"{path} is damaged, or no memory that was saved here") from None
        for name in other:
            raise ValueError(f"{path} was saved with another {name}: {about.get(name)!r:.60}, not {made_for[name]!r}")
        counted = all(type(count) is int and 0 <= count < 2**40 for count in (step, position, tokens))
        shape = (*self.keys.shape[:2], len(data) if data.ndim else 0, self.keys.shape[3])
        floats = keys.is_floating_point() and values.is_floating_point()
        if not counted or not floats or keys.shape != shape or values.shape != shape or data.shape != (shape[2], 7):
            raise ValueError(f"{path} is damaged: its tensors are not such as this model's memory has")
        keys, values = keys.to(self.keys), values.to(self.values)
        low = torch.tensor(columns(index=-1)[0])
        high = torch.tensor(columns(kind=PAD - 1, step=step - 1, index=n - 1, order=tokens, question=0, first=1)[0])
        later = Columns.of(columns(step=step, order=tokens, question=np.arange(2)))[:, None]
        finite = keys.isfinite().all() and values.isfinite().all()
        within = data.dtype == torch.int64 and ((data >= low) & (data <= high)).all()
        if not finite or not within or not visible(method, later, Columns(data)).any(0).all():
            raise ValueError(f"{path} is damaged: it holds numbers that no memory has")
        return Memory(keys, values, Columns(data.to(self.keys.device)), step, position, tokens), about

    def __len__(self) -> int:
        """KV pairs held."""
        return self.keys.shape[2]

    @property
    def nbytes(self) -> int:
        """Bytes of its keys and values."""
        return self.keys.nbytes + self.values.nbytes

    def extended(self, keys: Tensor, values: Tensor, added: Columns) -> "Memory":
        """With more columns behind those there are."""
        data = torch.cat([self.columns.data, added.data])
        keys, values = torch.cat([self.keys, keys], 2), torch.cat([self.values, values], 2)
        return Memory(keys, values, Columns(data), self.step, self.position, self.tokens, self.means)

    def select(self, kept: Tensor) -> "Memory":
        """With only the columns that `kept`, bool (M,), tells."""
        keys, values = self.keys[:, :, kept], self.values[:, :, kept]
        means = None if self.means is None else self.means[:, :, :, kept[self.columns.slot]]
        return Memory(keys, values, self.columns[kept], self.step, self.position, self.tokens, means)

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
        later = columns(step=self.step + 1, order=self.tokens + len(added.data), question=np.arange(2))
        memory = memory.select(visible(method, Columns.of(later, keys.device)[:, None], memory.columns).any(0))
        memory.step, memory.position = self.step + 1, self.position + text
        memory.tokens = self.tokens + len(added.data)
        return memory

    def merged(self, method: Method, slots: Columns) -> "Memory":
        """With the slots of this step, see slot_weights.

        In float64, which `means` keeps for the next step: a 16-bit mean no longer moves after a few hundred steps.
        """
        have, rate = self.columns, merge_rate(method, self.step).to(self.keys.device)[:, None]  # (1 or M, 1)
        weights = slot_weights(method, have, slots, self.step, rate)  # (M, C)
        used = (weights != 0).any(0)  # of the C columns few, for most are text
        of = lambda some: torch.stack([self.keys[:, :, some], self.values[:, :, some]]).double()
        means = of(have.slot) if self.means is None else self.means  # of the S slots there are
        pairs = of(used)  # (2, layers, kv heads, U, head_dim)
        pairs[:, :, :, have.slot[used]] = means[:, :, :, used[have.slot]]
        merged = weights[:, used] @ pairs
        memory = self.extended(*merged.to(self.keys.dtype), slots)
        memory.means = torch.cat([means, merged], 3)
        return memory


def slot_weights(method: Method, have: Columns, slots: Columns, step, rate) -> Tensor:
    """float64 (..., M, C): what the columns (..., C, 7) that there are after a step give to its slots (..., M, 7).

    (1 - rate) times the last step's slot j plus rate times the mean of what goes in. step and rate are those of the one
    conversation, or tensors (..., 1 or M, 1).
    """
    have, new = Columns(have.data.unsqueeze(-3)), Columns(slots.data.unsqueeze(-2))
    fresh = (have.kind != new.kind) & (have.index == new.index) & (have.step == step - method.delay)
    before = (have.kind == new.kind) & (have.index == new.index) & (have.step == step - method.stride)
    fresh, before = fresh.double(), before.double()
    return rate * fresh / fresh.sum(-1, keepdim=True).clamp(min=1) + (1 - rate) * before
