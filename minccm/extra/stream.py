"""Streaming: reading a text of any length with a cache of fixed size (paper: figure 8).

    [ sink | compressed memory | recent tokens ]

A token's position is its place in this cache, so positions stay below the window: keys are stored unrotated, and all
are rotated by their place whenever they are read. When the cache is full, n COMP tokens read the oldest `chunk` of the
recent tokens, and their keys and values replace it. Concatenated memory drops its oldest pairs beyond `memory`; merged
memory stays at n pairs. Without compression, this is the sliding window with a sink (StreamingLLM).

Places change only when a chunk is compressed. So all tokens between two compressions, a segment, go through the model
in one forward pass, together with the COMP tokens at its end. The numbers are those of token by token.

Merged memory is fp64 here, because a stream merges without end. The authors' code, when it merges in this setting,
stores keys in the place of values; here keys and values are merged separately.
"""

from collections.abc import Iterator
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from minccm.fast.graphs import Replayed
from minccm.fast.inference import block_forward, embed, lora_tokens
from minccm.memory import Memory
from minccm.methods import METHODS, TEXT, Method, TokenInfo, attention_mask
from minccm.model import attend, rotary_frequencies, rotary_table, rotate
from minccm.sequence import step_rows


def max_slots(method: Method | None, n: int, memory: int) -> int:
    """The most pairs of compressed memory: merged memory has a fixed number, other methods keep up to `memory`."""
    return n * method.stride if method and method.merge_rate and method.comp_after else memory


class StreamKV:
    """Keys and values of a segment: [memory; recent; segment; its COMP tokens], all rotated by their place.

    It gets queries and keys that are not rotated yet.
    """

    def __init__(self, keys: Tensor, values: Tensor, recent: Tensor, mask: Tensor, query_table, key_table):
        self.keys, self.values, self.recent, self.mask = keys, values, recent, mask
        self.query_table, self.key_table = query_table, key_table  # cos and sin
        self.added: list[Tensor] = []  # unrotated keys and values of the segment, layer by layer

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """q (1, heads, N, head_dim), k and v (1, kv_heads, N, head_dim) -> (1, heads, N, head_dim)."""
        self.added.append(torch.cat([k, v]))  # (2, kv_heads, N, head_dim)
        k = torch.cat([self.keys[None, layer].to(k.dtype), self.recent[:1, layer], k], 2)
        v = torch.cat([self.values[None, layer].to(v.dtype), self.recent[1:, layer], v], 2)
        return attend(rotate(q, *self.query_table), rotate(k, *self.key_table), v, self.mask)


class Stream:
    """A model that reads a stream of tokens.

    method: ccm-concat, ccm-merge, or another method that keeps COMP tokens or slots; None for the sliding window, which
    always has the size of ccm-concat's cache. n: COMP tokens per chunk. window: the number of KV pairs at which the
    cache is full; a token is read at that size and then added, so the cache can hold window + 1. chunk: tokens that are
    compressed at once. memory: the most pairs of compressed memory. sink: first tokens that are always kept. Raises
    ValueError for sizes that do not fit together.
    """

    def __init__(self, model, method: Method | None, n: int, window=160, chunk=64, memory=8, sink=1):
        if method and not (method.reads_context and (method.comp_after == "step" or method.merge_rate)):
            raise ValueError(f"{method.name} keeps no memory of a chunk: take ccm-concat or ccm-merge")
        memory = max_slots(method, n, memory)
        if min(n, sink) < 0 or chunk <= n or memory < n or sink + memory + chunk > window:
            sizes = f"a sink of {sink}, a memory of {memory} (n = {n}) and a chunk of {chunk}"
            raise ValueError(f"a window of {window} has no space for {sizes}: take n < chunk, n <= memory")
        self.model, self.n = model, n
        self.method = method and replace(method.bind(model), sink=sink > 0)
        self.window, self.chunk, self.slots, self.sink = window, chunk, memory, sink
        config, weight = model.config, model.embed_tokens.weight
        self.device = weight.device
        empty = Memory.empty(config, METHODS["full"], weight.dtype, weight.device)
        self.recent = torch.stack([empty.keys] * 2)  # (2, layers, kv_heads, W, head_dim): keys and values, unrotated
        if method and method.merge_rate:
            empty = Memory.empty(config, method, torch.float64, weight.device)
        self.memory = empty  # sink and compressed memory, unrotated
        self.slots_held = 0  # pairs of compressed memory; for a sliding window, those that ccm-concat would hold
        places = torch.arange(window + 1 + n, device=weight.device)
        # cos and sin, each (1, 1, places, head_dim / 2)
        self.table = rotary_table(places[None], rotary_frequencies(config), weight.dtype)
        self.unrotated = tuple(part[:, :, :1] for part in self.table)  # of position 0
        self.replayed = Replayed(self._pass)

    def __len__(self) -> int:
        """KV pairs held."""
        return len(self.memory) + self.recent.shape[3]

    @property
    def nbytes(self) -> int:
        """Bytes of keys and values."""
        return self.memory.nbytes + self.recent.nbytes

    @property
    def compressed(self) -> Tensor:
        """Keys and values of the compressed memory: (2, layers, kv_heads, slots, head_dim)."""
        pairs = torch.stack([self.memory.keys, self.memory.values])
        return pairs[:, :, :, min(self.sink, len(self.memory)) :]

    @property
    def space_left(self) -> int:
        """Tokens until the next compression: the length of a segment."""
        return self.window + 1 - len(self)

    @torch.no_grad()
    def read(self, ids: list[int]) -> Tensor:
        """Reads token ids. Returns logits (len(ids), vocab_size): row i predicts the token after ids[i]."""
        logits = []
        while ids:
            segment, ids = ids[: self.space_left], ids[self.space_left :]
            full = len(segment) == self.space_left
            with_comp = full and bool(self.method) and self.recent.shape[3] >= self.chunk
            added, predicted = self._forward(segment, with_comp)
            logits.append(predicted)
            self.recent = torch.cat([self.recent, added[:, :, :, : len(segment)]], 3)
            if self._missing_sink():
                self._keep_sink()
            if full:
                comp = added[:, :, :, len(segment) :]
                if self.method and self.method.comp_after and not with_comp:  # a part of the chunk was in the segment
                    comp, _ = self._forward([], with_comp=True)
                self.compress(comp)
        return torch.cat(logits)

    def score(self, ids: list[int], max_segment: int | None = None) -> Iterator[Tensor]:
        """Reads all ids but the last. Yields the negative log-likelihood of each next token by segments, fp32 (T,).

        max_segment: at most this many tokens at a time; 1 is token by token.
        """
        start = 0
        while start < len(ids) - 1:
            end = min(start + min(self.space_left, max_segment or self.space_left), len(ids) - 1)
            labels = torch.tensor(ids[start + 1 : end + 1], device=self.device)
            yield F.cross_entropy(self.read(ids[start:end]).float(), labels, reduction="none")
            start = end

    def compress(self, comp: Tensor) -> None:
        """Replaces the oldest chunk by its COMP tokens' keys and values (2, layers, kv_heads, n, head_dim)."""
        before, self.slots_held = self.slots_held, min(self.slots_held + self.n, self.slots)
        if not self.method:  # a sliding window drops as many tokens as compression would have saved
            self.recent = self.recent[:, :, :, self.chunk - (self.slots_held - before) :]
            return
        chunk, self.recent = self.recent[:, :, :, : self.chunk], self.recent[:, :, :, self.chunk :]
        keys, values = torch.cat([chunk, comp], 3)
        memory = self.memory.update(self.method, keys, values, *self._chunk_info(), text=self.chunk)
        index = torch.arange(len(memory), device=self.device)
        self.memory = memory.select((index < self.sink) | (index >= len(memory) - self.slots_held))

    def _missing_sink(self) -> int:
        return self.sink - len(self.memory) if not self.slots_held else 0

    def _keep_sink(self) -> None:
        """Moves the first tokens of the stream into the memory."""
        count = min(self._missing_sink(), self.recent.shape[3])
        keys, values = self.recent[:, :, :, :count]
        order = 0  # of BOS: the method's rule then keeps all of the sink
        info = TokenInfo.from_rows([(TEXT, 0, -1, order, 0)] * count, self.device)
        self.memory = self.memory.append(keys, values, info)
        self.memory = replace(self.memory, tokens=self.memory.tokens + count)
        self.recent = self.recent[:, :, :, count:]

    def _forward(self, ids: list[int], with_comp: bool) -> tuple[Tensor, Tensor]:
        """Runs the model on a segment, and on COMP tokens that read the oldest chunk.

        Returns unrotated keys and values (2, layers, kv_heads, N, head_dim), and logits of the segment.
        """
        held, text = len(self), len(ids)
        comp = self.n if with_comp and self.method.comp_after else 0
        chunk_end = len(self.memory) + self.chunk  # where the first COMP token's place is
        places = [*range(held), *range(held, held + text), *range(chunk_end, chunk_end + comp)]
        mask = torch.ones(text + comp, held + text + comp, dtype=torch.bool).tril(held)
        mask[text:, chunk_end : held + text] = False  # COMP tokens attend to the memory, the chunk and each other
        mask = mask.to(self.device)
        if comp:  # the method's rule covers the memory
            info, _ = self._chunk_info()
            mask[text:, : len(self.memory)] = attention_mask(self.method, info[self.chunk :], self.memory.info)
        places = torch.tensor(places, device=self.device)
        tables = [part[:, :, place] for place in (places[held:], places) for part in self.table]
        vocab_size = self.model.config.vocab_size
        tokens = torch.tensor([[*ids, *range(vocab_size, vocab_size + comp)]], device=self.device)
        run = self.replayed if text == self.space_left else self._pass  # full segments have few shapes
        return run(tokens, comp, mask, *tables, self.memory.keys, self.memory.values, self.recent)

    def _pass(self, tokens: Tensor, comp: int, mask: Tensor, *tensors: Tensor) -> tuple[Tensor, Tensor]:
        """The part of _forward that a CUDA graph can hold. The last `comp` tokens are COMP tokens."""
        *tables, keys, values, recent = tensors
        kv = StreamKV(keys, values, recent, mask, tables[:2], tables[2:])
        text = tokens.shape[1] - comp
        comp_index = torch.arange(text, text + comp, device=tokens.device) if comp else None
        lora = lora_tokens(self.method, comp_index) if self.method else None
        x = embed(self.model, tokens, comp_index)
        for layer, block in enumerate(self.model.layers):
            x = block_forward(block, x, layer, *self.unrotated, kv, lora)
        logits = self.model.lm_head(self.model.norm(x[0, :text]))
        return torch.stack(kv.added, 1), logits

    def _chunk_info(self) -> tuple[TokenInfo, TokenInfo]:
        """TokenInfo of the chunk that is compressed next, followed by its COMP tokens; and of the slots it makes."""
        _, info, slots = step_rows(self.method, self.n, self.chunk, self.memory.step, self.memory.tokens)
        return TokenInfo.from_rows(info, self.device), TokenInfo.from_rows(slots, self.device)
