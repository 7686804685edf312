"""Streaming: read without end in a cache of fixed size (paper: figure 8).

    [ sink | compressed memory | the newest tokens ]

A token's position is its place in this cache, so positions never outgrow the model: keys are stored unrotated, and all
of them are rotated by place whenever they are seen. When the cache is full, the oldest `chunk` of the newest tokens is
read by n COMP tokens and gives way to their keys and values; concatenated memory forgets its oldest ones beyond
`memory`, merged memory stays at n. Without compression this is the sliding window with sink (StreamingLLM).

Places change only when something is compressed. So all that is read between two compressions, a stretch, goes through
the model in one forward pass, and the COMP tokens that end it go along. Token by token gives the same numbers.

The authors' code, when it merges here, puts keys in the place of values; ours merges keys and values, each on its own.
"""

from collections.abc import Iterator
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from minccm.graphs import Replayed
from minccm.layout import step_columns
from minccm.lora import lora_gate
from minccm.memory import Memory
from minccm.methods import TEXT, Columns, Method, columns, visible
from minccm.model import Transformer, attention, rope_table, rotate


def slots_kept(method: Method | None, n: int, memory: int) -> int:
    """Slots of compressed memory that stand at most: merged memory has its own number, other methods keep `memory`."""
    return n * method.stride if method and method.rate and method.comp else memory


class Placed:
    """The view of a stretch: [memory; newest; the stretch; its COMP tokens], all turned by their place in the cache.

    The model is given positions of 0, which turn nothing.
    """

    def __init__(self, keys: Tensor, values: Tensor, newest: Tensor, mask: Tensor, query_table, key_table):
        self.memory, self.newest, self.mask = (keys, values), newest, mask
        self.query_table, self.key_table = query_table, key_table
        self.added: list[Tensor] = []  # unrotated keys and values of the stretch, layer by layer

    def extend(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        self.added.append(torch.cat([keys, values]))  # (2, kv heads, N, head_dim)
        keys = torch.cat([self.memory[0][None, layer], self.newest[:1, layer], keys], 2)
        values = torch.cat([self.memory[1][None, layer], self.newest[1:, layer], values], 2)
        return rotate(keys, *self.key_table), values

    def attend(self, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        return attention(rotate(queries, *self.query_table), keys, values, self.mask)


class Stream:
    """A model that reads on and on.

    method: ccm-concat, ccm-merge, another that keeps COMP tokens or slots, or None for the sliding window, which is at
    every moment as large as the cache of ccm-concat with these numbers is. n: COMP tokens a chunk. window: key/value
    pairs from which on the cache is full; as a token is read at that size and then added, it holds window + 1 for a
    moment. chunk: tokens compressed at once. memory: slots of compressed memory, sink: first tokens, kept for good.
    Raises ValueError for numbers that leave no room.
    """

    def __init__(self, model: Transformer, method: Method | None, n: int, window=160, chunk=64, memory=8, sink=1):
        if method and not (method.reads and (method.comp == "step" or method.rate)):
            raise ValueError(f"{method.name} keeps no memory of a chunk: take ccm-concat or ccm-merge")
        memory = slots_kept(method, n, memory)
        if min(n, sink) < 0 or chunk <= n or memory < n or sink + memory + chunk > window:
            sizes = f"{sink} of sink, {memory} of memory (n = {n}) and a chunk of {chunk}"
            raise ValueError(f"a window of {window} has no room for {sizes}: take n < chunk, n <= memory")
        self.model, self.n = model, n
        self.method = method and replace(method.of(model), sink=sink > 0)
        self.window, self.chunk, self.slots, self.sink = window, chunk, memory, sink
        config, weight = model.config, model.embed_tokens.weight
        self.device = weight.device
        self.memory = Memory.empty(config, weight.dtype, weight.device)  # sink and compressed memory, unrotated
        self.newest = torch.stack([self.memory.keys] * 2)  # (2, layers, kv heads, W, head_dim): keys, values
        self.held = 0  # slots of compressed memory that there are, or in a sliding window would be
        places = torch.arange(window + 1 + n, device=weight.device)
        # cos and sin, each (1, 1, places, head_dim / 2)
        self.table = rope_table(places[None], model.frequencies.to(self.device), weight.dtype)
        self.again = Replayed(self._pass)

    def __len__(self) -> int:
        """KV pairs held."""
        return len(self.memory) + self.newest.shape[3]

    @property
    def nbytes(self) -> int:
        return self.memory.nbytes + self.newest.nbytes

    @property
    def room(self) -> int:
        """Tokens to read until something is compressed: the length of a stretch."""
        return self.window + 1 - len(self)

    @torch.no_grad()
    def read(self, ids: list[int]) -> Tensor:
        """Reads token ids on; logits (len(ids), vocab_size) of what comes after each."""
        logits = []
        while ids:
            stretch, ids = ids[: self.room], ids[self.room :]
            full = len(stretch) == self.room
            soon = full and bool(self.method) and self.newest.shape[3] >= self.chunk
            added, predicted = self._forward(stretch, compress=soon)
            logits.append(predicted)
            self.newest = torch.cat([self.newest, added[:, :, :, : len(stretch)]], 3)
            if self._missing_sink():
                self._keep_sink()
            if full:
                comp = added[:, :, :, len(stretch) :]
                if self.method and self.method.comp and not soon:  # part of the chunk was read only now
                    comp, _ = self._forward([], compress=True)
                self._compress(comp)
        return torch.cat(logits)

    def score(self, ids: list[int], stretch: int | None = None) -> Iterator[Tensor]:
        """Reads ids but the last; yields, stretch by stretch, the negative log-likelihood of each next one, fp32 (T,).

        stretch: at most so many tokens at a time; 1 is token by token.
        """
        at = 0
        while at < len(ids) - 1:
            end = min(at + min(self.room, stretch or self.room), len(ids) - 1)
            labels = torch.tensor(ids[at + 1 : end + 1], device=self.device)
            yield F.cross_entropy(self.read(ids[at:end]).float(), labels, reduction="none")
            at = end

    def _missing_sink(self) -> int:
        return self.sink - len(self.memory) if not self.held else 0

    def _keep_sink(self) -> None:
        """The first tokens of all go into the memory, for good."""
        first = self.newest[:, :, :, : self._missing_sink()]
        order = torch.arange(first.shape[3]).numpy() + self.memory.tokens
        self.memory = self.memory.extended(*first, Columns.of(columns(0, TEXT, -1, -1, order, 0, 1), self.device))
        self.memory.tokens += first.shape[3]
        self.newest = self.newest[:, :, :, first.shape[3] :]

    def _forward(self, ids: list[int], compress: bool) -> tuple[Tensor, Tensor]:
        """The model on a stretch, and with `compress` on the COMP tokens that read the oldest chunk.

        Returns unrotated keys and values (2, layers, kv heads, N, head_dim), and logits of the stretch.
        """
        config, m, length = self.model.config, len(self.memory), len(self)
        text, comp = len(ids), self.n * bool(compress and self.method.comp)
        ids = ids + list(range(config.vocab_size, config.vocab_size + comp))
        behind = m + self.chunk  # the place of the first COMP token, should there be one
        places = [*range(length, length + text), *range(behind, behind + comp)]
        mask = torch.ones(text + comp, length + text + comp, dtype=torch.bool).tril(length)
        mask[text:, behind:] = False  # COMP tokens see memory, chunk and each other
        mask[text:, length + text :] = torch.ones(comp, comp).tril()
        mask = mask.to(self.device)
        if comp:  # and of the memory what the method lets them see
            added = Columns.of(self._columns()[0], self.device)[self.chunk :]
            mask[text:, :m] = visible(self.method, added[:, None], self.memory.columns)
        places = torch.tensor([*range(length), *places], device=self.device)  # of the keys; the last are the queries'
        tables = [part[:, :, place] for place in (places[length:], places) for part in self.table]
        tokens, rows = (torch.tensor(x, device=self.device) for x in (ids, range(text + comp)))
        run = self.again if text == self.room else self._pass  # whole stretches are of few shapes
        cache = self.memory.keys, self.memory.values, self.newest
        return run(tokens[None], rows[:text], rows[text:], mask, *tables, *cache)

    def _pass(
        self, tokens: Tensor, text: Tensor, comp: Tensor, mask: Tensor, *tensors: Tensor
    ) -> tuple[Tensor, Tensor]:
        """What of _forward is tensors alone; text and comp are the places of text and COMP tokens."""
        *tables, keys, values, newest = tensors
        view = Placed(keys, values, newest, mask, tables[:2], tables[2:])
        comp = comp if len(comp) else None  # without one, the adapter has nothing to do
        gate = lora_gate(comp, self.method.conditional, adapted=True) if self.method else None
        logits = self.model(tokens, torch.zeros_like(tokens), view, comp, gate, text)  # (T, vocab_size)
        return torch.stack(view.added, 1), logits

    def _columns(self):
        """Columns of the chunk that is next to be compressed with its COMP tokens, and its slots."""
        return step_columns(self.method, self.n, [self.chunk], self.memory.step, self.memory.tokens, questions=0)[1:]

    def _compress(self, comp: Tensor) -> None:
        """The oldest chunk gives way to its COMP tokens, keys and values `comp` (2, layers, kv heads, n, head_dim)."""
        held, self.held = self.held, min(self.held + self.n, self.slots)
        if not self.method:  # a sliding window forgets as much as compression would have saved
            self.newest = self.newest[:, :, :, self.chunk - (self.held - held) :]
            return
        chunk, self.newest = self.newest[:, :, :, : self.chunk], self.newest[:, :, :, self.chunk :]
        added, slots = (Columns.of(data, self.device) for data in self._columns())
        pairs = torch.cat([chunk, comp], 3)
        memory = self.memory.updated(self.method, *pairs, added, slots, text=self.chunk)
        kept = torch.arange(len(memory), device=self.device)
        self.memory = memory.select((kept < self.sink) | (kept >= len(memory) - self.held))
