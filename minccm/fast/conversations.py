"""Many conversations at once, in buffers of fixed shape (paper: figure 5, table 1).

A compressed memory does not grow, so its shape can be fixed. For each layer and conversation there is one buffer: first
`pairs` KV pairs of memory, then the tokens that are read now.

    [ memory: pairs | a context with its COMP tokens; or an input and its output ]

`info` describes each place; the kind of an empty one is PAD. The attention rule is methods.attention_mask, as
everywhere. So each turn of each conversation, at any time step, is the same work at the same places. On a GPU it is one
CUDA graph, captured once and then replayed: one to read, one for an input, one for each token of an output.

    talks = Conversations(model, method, n, batch=2, pairs=16, turn=64, output=32)
    talks.read([ids, None])            # the second conversation has no context this time
    talks.generate([ids, ids])         # two outputs

FastSession is a Session that generates in this way. The numbers are those of a Session: tests/test_conversations.py.
"""

import functools
from collections.abc import Iterator
from dataclasses import fields

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from minccm.fast.fused import join_lora, join_weights, joined
from minccm.fast.graphs import capture
from minccm.fast.inference import attend_heads, attention_forward, block_forward, embed, lora_tokens
from minccm.memory import Memory
from minccm.methods import COMP, PAD, TEXT, Method, TokenInfo, attention_mask, merge_rate_at
from minccm.model import Block, Transformer, attend, rotary_frequencies, rotary_table
from minccm.sequence import LATEST, step_rows
from minccm.session import Session, sample

if torch.cuda.is_available():
    from minccm.fast import kernels

# TokenInfo is held as one int64 tensor (fields, ...) here, so that one kernel moves all fields
FIELDS = [field.name for field in fields(TokenInfo)]  # the order of values in a row for TokenInfo.from_rows
ORDER = FIELDS.index("order")
PADDING = (PAD, -1, -1, LATEST, 0)


class StaticKV:
    """The buffers of one layer: tokens are written to the places (N,), then all places are read.

    keys, values: (B, kv_heads, C, head_dim). bias: (B, N, C), added to the scores.
    """

    def __init__(self, keys: Tensor, values: Tensor, places: Tensor, bias: Tensor):
        self.keys, self.values, self.places, self.bias = keys, values, places, bias

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """q (B, heads, N, head_dim), k and v (B, kv_heads, N, head_dim) -> (B, heads, N, head_dim)."""
        self.keys.index_copy_(2, self.places, k)
        self.values.index_copy_(2, self.places, v)
        width = q.shape[3]
        if q.is_cuda and width >= 16 and width & (width - 1) == 0:
            return kernels.attend(q, self.keys, self.values, self.bias)
        return attend(q, self.keys, self.values, self.bias[:, None])


def one_token(block: Block, x: Tensor, layer: int, cos: Tensor, sin: Tensor, kv, lora_index=None) -> Tensor:
    """block_forward for one token of one conversation, x (1, 1, dim), with kernels.product. There is no LoRA on it."""
    attention, mlp, before, after = block.self_attn, block.mlp, block.input_layernorm, block.post_attention_layernorm
    qkv = kernels.product(x, attention.qkv, before.weight, before.eps)
    sizes = [len(projection.weight) for projection in (attention.q_proj, attention.k_proj, attention.v_proj)]
    y = attend_heads(qkv.split(sizes, -1), attention.head_dim, layer, cos, sin, kv)
    x = kernels.product(y, attention.o_proj.weight, add=x)
    y = kernels.product(x, mlp.gate_up, after.weight, after.eps, gated=True)
    return kernels.product(y, mlp.down_proj.weight, add=x)


class Conversations:
    """A batch of conversations with a model, their contexts held as the memory of `method` with n COMP tokens a step.

    pairs: the most KV pairs of memory in one conversation. turn: the most tokens of a context, or of an input. output:
    the most tokens of an output. graphs: replay CUDA graphs of compiled code; by default on a GPU. The model's adapter
    is rounded to the dtype of its weights, see fused.join_lora.
    """

    @torch.no_grad()
    def __init__(
        self,
        model: Transformer,
        method: Method,
        n: int,
        batch: int,
        pairs: int,
        turn: int,
        output: int = 32,
        graphs: bool | None = None,
    ):
        config, weight = model.config, model.embed_tokens.weight
        self.model, self.method, self.n = model, method.bind(model), n
        self.batch, self.pairs, self.turn, self.output = batch, pairs, turn, output
        self.device = weight.device
        join_lora(model)
        self.graphs = {} if (weight.is_cuda if graphs is None else graphs) else None
        joined_weights = joined(model.layers[0].mlp, "gate_up") is not None
        self.use_one_token = batch == 1 and weight.is_cuda and joined_weights
        comp = n if method.comp_after else 0
        self.max_moved = self._max_moved()
        width = -(-(pairs + turn + max(comp, output, self.max_moved - turn)) // 16) * 16
        shape = config.n_layers, batch, config.n_kv_heads, width, config.head_dim
        self.keys = torch.zeros(shape, dtype=weight.dtype, device=self.device)  # (layers, B, kv_heads, C, head_dim)
        self.values = torch.zeros_like(self.keys)
        # the memory in the precision that it is merged in; the buffers themselves if they have that precision
        exact = torch.promote_types(weight.dtype, torch.float32) if method.merge_rate else weight.dtype
        self.exact = self.keys, self.values
        if exact != weight.dtype:
            shape = *shape[:3], pairs + self.max_moved, shape[4]
            self.exact = tuple(torch.zeros(shape, dtype=exact, device=self.device) for _ in range(2))
        self.fields = torch.zeros(len(FIELDS), batch, width, dtype=torch.int64, device=self.device)
        self.padding = torch.tensor(PADDING, device=self.device)[:, None, None]
        self.reset()
        slots = n if method.merge_rate else 0
        self.stages = {
            "read": Stage(self, turn + comp, pairs, comp, slots),
            "input": Stage(self, turn, pairs),
            "token": Stage(self, 1, pairs + turn),
        }
        self.frequencies = rotary_frequencies(config).to(self.device)
        self.next_logits = torch.empty(batch, config.vocab_size, dtype=weight.dtype, device=self.device)
        self.is_full = torch.zeros((), dtype=torch.bool, device=self.device)

    def reset(self, which: list[int] | None = None) -> None:
        """Empties the memory of the conversations with these numbers, or of all."""
        if which is None:
            which = slice(None)
            self.step, self.text, self.tokens = (np.zeros(self.batch, np.int64) for _ in range(3))  # as in Memory
        self.step[which] = self.text[which] = self.tokens[which] = 0
        self.fields[:, which] = self.padding

    @property
    def info(self) -> TokenInfo:
        """What each place holds: fields are int64 (B, C), views of the buffer."""
        return TokenInfo(*self.fields)

    @torch.no_grad()
    def put(self, memory: Memory, which: int = 0) -> None:
        """Makes this the memory of one conversation. Raises ValueError if it has more than `pairs`."""
        if len(memory) > self.pairs:
            raise ValueError(f"a memory of {len(memory)} pairs exceeds {self.pairs}: give a larger `pairs`")
        self.reset([which])
        held = slice(len(memory))
        for buffers in (self.exact, (self.keys, self.values)):
            for buffer, pairs in zip(buffers, (memory.keys, memory.values)):
                buffer[:, which, :, held] = pairs.to(buffer.dtype)
        for field, held_field in zip(self.fields, vars(memory.info).values()):
            field[which, held] = held_field
        self.step[which], self.text[which], self.tokens[which] = memory.step, memory.text, memory.tokens

    @torch.no_grad()
    def read(self, texts: list[list[int] | None]) -> None:
        """Compresses one context of each conversation, given as token ids; None: this one has no context.

        Raises ValueError if a text is too long, or if a memory would exceed `pairs`; that memory is then lost.
        """
        if not self.method.reads_context:
            return
        stage = self._fill("read", texts, question=0)
        reads = np.array([text is not None for text in texts])
        lengths = np.array([len(text or ()) for text in texts])
        added = lengths + (self.n if self.method.comp_after else 0)
        if self.method.merge_rate:
            stage.host["step"][:, 0, 0] = self.step
            for t in set(self.step[self.step >= self.method.delay].tolist()):
                stage.host["rate"][self.step == t, :, 0] = merge_rate_at(self.method, t).tolist()
        self.step, self.text, self.tokens = self.step + reads, self.text + lengths * reads, self.tokens + added * reads
        for i, (step, order) in enumerate(zip(self.step.tolist(), self.tokens.tolist())):
            stage.host["later"][:, i] = np.array(_later_rows(step, order)).T
        stage.send()
        self._replay("read", self._read, self._update)
        if self.is_full:
            raise ValueError(f"a memory would exceed {self.pairs} pairs: give a larger `pairs`")

    @torch.no_grad()
    def logits(self, texts: list[list[int]]) -> Tensor:
        """Logits (B, vocab_size) of the token after each input. The memory does not change."""
        self._fill("input", texts, question=1).send()
        self._clear_turn()
        self._replay("input", self._input)
        return self.next_logits

    def generate(
        self,
        texts: list[list[int]],
        max_tokens: int | None = None,
        temperature: float = 0.0,
        top_p: float = 1.0,
        generator: torch.Generator | None = None,
        stop_ids: tuple[int, ...] | None = None,
    ) -> list[list[int]]:
        """The output for each input: token ids up to one of stop_ids (by default EOS). The memory does not change.

        max_tokens: by default `output`, which is the most. The rest is as in Session.generate.
        """
        stop_ids = (self.model.config.eos_id,) if stop_ids is None else stop_ids
        stop = torch.tensor(stop_ids, dtype=torch.int64, device=self.device)
        max_tokens = self.output if max_tokens is None else max_tokens
        columns, ended = [], torch.zeros(self.batch, dtype=torch.bool, device=self.device)
        for i, tokens in enumerate(self.stream(texts, max_tokens, temperature, top_p, generator)):
            columns.append(tokens)
            ended |= torch.isin(tokens, stop)
            if stop_ids and i % 16 == 15 and ended.all():  # checked rarely, because it waits for the GPU
                break
        outputs = torch.stack(columns, 1).tolist()
        ends = [next((i for i, token in enumerate(output) if token in stop_ids), len(output)) for output in outputs]
        return [output[:end] for output, end in zip(outputs, ends)]

    @torch.no_grad()
    def stream(
        self,
        texts: list[list[int]],
        max_tokens: int,
        temperature: float = 0.0,
        top_p: float = 1.0,
        generator: torch.Generator | None = None,
    ) -> Iterator[Tensor]:
        """Yields the next token of each output, int64 (B,), max_tokens times; nothing stops it. The memory stays.

        temperature, top_p: as in Session.generate. Raises ValueError for more tokens than `output`.
        """
        if max_tokens > self.output:
            raise ValueError(f"an output of {max_tokens} tokens exceeds {self.output}: give a larger `output`")
        logits = self.logits(texts)
        stage, lengths = self.stages["token"], np.array([len(text) for text in texts])
        stage.clear()
        stage.host["positions"][:, 0] = self.text + lengths
        rows = [(TEXT, step, -1, order, 1) for step, order in zip(self.step, self.tokens + lengths)]
        stage.host["info"][:, :, 0] = np.array(rows).T
        stage.send()
        stage.count.zero_()
        try:
            for i in range(max_tokens):
                tokens = sample(logits, temperature, top_p, generator)
                yield tokens
                if i + 1 < max_tokens:
                    stage.tokens.copy_(tokens[:, None])
                    self._replay("token", self._token)
                    stage.count += 1
        finally:
            self._clear_turn()

    def __len__(self) -> int:
        """KV pairs held by the conversation that holds the most."""
        return int((self.info.kind != PAD).sum(1).max())

    def _clear_turn(self) -> None:
        self.fields[..., self.pairs :] = self.padding

    def _fill(self, name: str, texts: list[list[int] | None], question: int) -> "Stage":
        """A stage whose inputs on the host are filled from token ids."""
        stage, vocab_size = self.stages[name], self.model.config.vocab_size
        if len(texts) != self.batch:
            raise ValueError(f"there are {len(texts)} texts for {self.batch} conversations")
        if (longest := max(len(text or ()) for text in texts)) > self.turn:
            raise ValueError(f"a text of {longest} tokens exceeds a turn of {self.turn}: split it")
        stage.clear()
        host, comp = stage.host, stage.host["comp"].reshape(self.batch, -1)

        @functools.cache
        def arrays(length: int, step: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
            positions, info, slots = step_rows(self.method, self.n, length, step, start=0, question=question)
            shaped = [np.array(rows, np.int64).reshape(-1, len(FIELDS)).T for rows in (info, slots)]
            return np.array(positions), *shaped  # (length,), (fields, length), (fields, slots)

        for i, text in enumerate(texts):
            first = i * stage.width  # of the flattened tokens
            if text is None:
                comp[i] = first + np.arange(stage.comp_tokens)  # some of the padding
                continue
            positions, info, slots = arrays(len(text), int(self.step[i]))
            size, added = len(positions), slots.shape[1]
            host["tokens"][i, : len(text)] = text
            host["tokens"][i, len(text) : size] = vocab_size + np.arange(size - len(text))
            host["positions"][i, :size] = self.text[i] + positions
            host["info"][:, i, :size], host["slots"][:, i, :added] = info, slots
            host["info"][ORDER, i, :size] += self.tokens[i]
            host["slots"][ORDER, i, :added] += self.tokens[i]
            comp[i] = first + len(text) + np.arange(stage.comp_tokens)
            host["ends"][i] = first + size - 1
        return stage

    def _forward(self, stage: "Stage", keys_only: bool = False) -> Tensor:
        """Runs the model on a stage's tokens (B, N), and writes their keys and values to the buffers.

        Returns hidden states (B, N, dim). keys_only: those of the last layer are not computed.
        """
        prepare = self._compiled(_prepare)
        places, bias, cos, sin = prepare(
            self.method,
            self.fields,
            stage.info,
            stage.places,
            stage.positions,
            stage.count,
            self.frequencies,
            self.keys,
        )
        comp_index = stage.comp if stage.comp_tokens else None
        x = embed(self.model, stage.tokens, comp_index)
        lora = lora_tokens(self.method, comp_index)
        one = self.use_one_token and stage.width == 1 and lora is None
        run, run_last = self._compiled(one_token if one else block_forward), self._compiled(attention_forward)
        for layer, block in enumerate(self.model.layers):
            kv = StaticKV(self.keys[layer], self.values[layer], places, bias)
            is_last = keys_only and layer + 1 == len(self.model.layers)
            x = (run_last if is_last else run)(block, x, layer, cos, sin, kv, lora)
        return x

    def _input(self) -> None:
        stage = self.stages["input"]
        x = self._forward(stage).flatten(0, 1)[stage.ends]  # (B, dim)
        self.next_logits.copy_(self.model.lm_head(self.model.norm(x)))

    def _token(self) -> None:
        x = self._forward(self.stages["token"])[:, 0]
        norm, head = self.model.norm, self.model.lm_head
        if self.use_one_token:
            self.next_logits.copy_(kernels.product(x, head.weight, norm.weight, norm.eps))
        else:
            self.next_logits.copy_(head(norm(x)))

    def _read(self) -> None:
        stage = self.stages["read"]
        self._forward(stage, keys_only=True)
        if self.method.pools == COMP:  # only COMP tokens go into slots
            starts = torch.arange(self.batch, device=self.device)[:, None] * stage.width
            sources = stage.comp.view(self.batch, -1) - starts  # (B, n)
        else:
            sources = (stage.places - self.pairs).expand(self.batch, -1)
        plan, step = self._compiled(_plan_update), (stage.slots, stage.later, stage.step, stage.rate)
        self.plan = sources, *plan(self.method, self.fields, sources, *step, self.padding, self.pairs, self.max_moved)

    def _update(self) -> None:
        """g_update as in Memory.update: what later steps attend to moves to free places, the rest is dropped.

        Slots are merged in the precision of `exact`. Then the buffers get the rounded slots.
        """
        sources, fields, moved_from, moved_to, weights, is_full = self.plan
        for buffer, exact in zip((self.keys, self.values), self.exact):
            tokens = buffer[..., self.pairs :, :]
            moved = _gather(tokens, moved_from.clamp(max=tokens.shape[3] - 1)).to(exact.dtype)
            if weights is not None:
                pairs = torch.cat([exact[..., : self.pairs, :], _gather(tokens, sources).to(exact.dtype)], 3)
                merged = weights[:, None].to(exact.dtype) @ pairs  # (layers, B, kv_heads, slots, head_dim)
                slot = moved_from - tokens.shape[3]
                is_slot = (slot >= 0)[:, None, :, None]
                moved = torch.where(is_slot, _gather(merged, slot.clamp(min=0)), moved)
            for target in (exact,) if exact is buffer else (exact, buffer):
                target.scatter_(3, _index_like(target, moved_to), moved.to(target.dtype))
        self.fields.copy_(fields)
        self.is_full.copy_(is_full)

    def _max_moved(self) -> int:
        """The most pairs of one step, tokens and slots, that later steps attend to."""
        most = 0
        for step in range(self.method.delay + 2):
            start = step * self.turn
            _, info, slots = step_rows(self.method, self.n, self.turn, step, start)
            later = TokenInfo.from_rows(_later_rows(step + 1, start + len(info)))
            kept = attention_mask(self.method, later, TokenInfo.from_rows(info + slots)).any(0)
            most = max(most, int(kept.sum()))
        return min(most, self.pairs)

    def _compiled(self, function):
        """The function, compiled if its kernels go into a graph."""
        return function if self.graphs is None else _compile(function)

    def _replay(self, name: str, work, then=lambda: None) -> None:
        """Does the work of a stage, on a GPU with its CUDA graph, which the first call captures."""
        if self.graphs is None:
            work()
            return then()
        if name not in self.graphs:
            pool = next((graph.pool() for graph in self.graphs.values()), None)  # no two of them run at once
            self.graphs[name] = capture(work, then, pool)  # `then` must not be done twice
        self.graphs[name].replay()


class Stage:
    """The inputs of one kind of work, at fixed addresses: `width` tokens of each conversation, written from `start` on.

    The host fills the arrays in `host`, which lie one after another, and sends all of them at once.
    """

    def __init__(self, talks: Conversations, width: int, start: int, comp: int = 0, slots: int = 0):
        batch, self.width, self.comp_tokens = talks.batch, width, comp
        shapes = {
            "tokens": (batch, width),
            "positions": (batch, width),
            "info": (len(FIELDS), batch, width),
            "comp": (batch * comp,),  # the COMP tokens among the flattened tokens
            "ends": (batch,),  # the last token of each text among the flattened tokens
            "slots": (len(FIELDS), batch, slots),  # for an update: the slots that the step adds,
            "later": (len(FIELDS), batch, 2),  # two queries of the next step,
            "step": (batch, 1, 1),  # the step,
            "rate": (batch, slots, 1),  # and a_t of each slot, fp64
        }
        sizes = [int(np.prod(shape)) for shape in shapes.values()]
        self.on_host = np.zeros(sum(sizes), np.int64)
        self.on_device = torch.zeros(sum(sizes), dtype=torch.int64, device=talks.device)
        self.host, on_device = {}, {}
        parts = np.split(self.on_host, np.cumsum(sizes)[:-1]), self.on_device.split(sizes)
        for (name, shape), here, there in zip(shapes.items(), *parts):
            if name == "rate":
                here, there = here.view(np.float64), there.view(torch.float64)
            self.host[name], on_device[name] = here.reshape(shape), there.view(shape)
        self.tokens, self.positions, self.comp, self.ends, self.step, self.rate = (
            on_device[name] for name in ("tokens", "positions", "comp", "ends", "step", "rate")
        )
        self.info, self.slots, self.later = (on_device[name] for name in ("info", "slots", "later"))
        self.places = torch.arange(start, start + width, device=talks.device)  # where the tokens go in the buffers
        self.count = torch.zeros((), dtype=torch.int64, device=talks.device)  # added to places, positions and order

    def clear(self) -> None:
        """Fills the host's arrays with padding."""
        self.on_host[:] = 0
        for name in ("info", "slots"):
            self.host[name][:] = np.array(PADDING)[:, None, None]

    def send(self) -> None:
        """Copies the host's arrays to the device."""
        self.on_device.copy_(torch.from_numpy(self.on_host))


class FastSession(Session):
    """A Session that generates from fixed buffers, which get a copy of its memory. It reads as a Session does."""

    def __init__(self, model: Transformer, method: Method, n: int):
        super().__init__(model, method, n)
        join_weights(model)
        self.sizes, self.talks = (256, 256, 64), None  # pairs, tokens of an input, tokens of an output

    def generate(
        self,
        ids: list[int],
        max_tokens: int = 64,
        temperature: float = 0.0,
        top_p: float = 1.0,
        generator: torch.Generator | None = None,
        stop_ids: tuple[int, ...] | None = None,
    ) -> Iterator[int]:
        """As Session.generate, one output at a time. Buffers that are too small are replaced, twice as large."""
        if len(ids) > (limit := self.model.config.max_positions):
            raise ValueError(f"a text of {len(ids)} tokens exceeds the model's {limit} positions: split it")
        needed = len(self.memory), len(ids), max_tokens
        sizes = tuple(max(size, 1 << (need - 1).bit_length()) for size, need in zip(self.sizes, needed))
        if self.talks is None or sizes != self.sizes:
            pairs, turn, output = self.sizes = sizes
            self.talks = None  # before the new ones are allocated
            self.talks = Conversations(self.model, self.method, self.n, 1, pairs, turn, output)
        self.talks.put(self.memory)
        stop_ids = (self.model.config.eos_id,) if stop_ids is None else stop_ids
        for token in map(int, self.talks.stream([ids], max_tokens, temperature, top_p, generator)):
            if token in stop_ids:
                return
            yield token


def _later_rows(step: int, order: int) -> list[tuple]:
    """Two queries after a step, in a context and in an input: rows for TokenInfo.from_rows, see Memory.update."""
    return [(TEXT, step, -1, order, 0), (TEXT, step, -1, order, 1)]


def _index_like(buffer: Tensor, index: Tensor) -> Tensor:
    """index (B, K) of pairs in a buffer (layers, B, kv_heads, C, head_dim), as gather and scatter need it."""
    return index[None, :, None, :, None].expand(*buffer.shape[:3], -1, buffer.shape[4])


def _gather(buffer: Tensor, index: Tensor) -> Tensor:
    """The pairs (layers, B, kv_heads, K, head_dim) at index (B, K) of a buffer."""
    return buffer.gather(3, _index_like(buffer, index))


def _prepare(method: Method, held: Tensor, fields: Tensor, places, positions, count, frequencies, keys):
    """Writes TokenInfo's fields (fields, B, N) to their places in `held` (fields, B, C).

    Returns the places, bias (B, N, C), cos and sin.
    """
    is_order = torch.arange(len(FIELDS), device=held.device)[:, None, None] == ORDER
    fields, places = fields + count * is_order, places + count
    held.index_copy_(2, places, fields)
    mask = attention_mask(method, TokenInfo(*fields), TokenInfo(*held))
    bias = torch.zeros(mask.shape, dtype=keys.dtype, device=mask.device).masked_fill(~mask, -torch.inf)
    return places, bias, *rotary_table(positions + count, frequencies, keys.dtype)


def _plan_update(method: Method, held: Tensor, sources, slots, later, step, rate, padding, pairs, max_moved):
    """What an update does, from TokenInfo's fields alone: `held` (fields, B, C) are the places.

    slots (fields, B, S): what this step merges. later (fields, B, 2): queries of the next step. sources (B, K): the
    tokens, counted from `pairs` on, that can go into slots. At most max_moved pairs move. Returns the fields after the
    update (fields, B, C); from where (counted from `pairs` on, slots after all places) and to where pairs move, both
    (B, max_moved); the weights of the memory and of the sources in each slot (B, S, pairs + K), or None; and whether
    the memory is too small.
    """
    fields = torch.cat([held, slots], 2)  # (fields, B, C + S)
    kept = attention_mask(method, TokenInfo(*later), TokenInfo(*fields)).any(1)  # (B, C + S)
    free, new = ~kept[:, :pairs], kept[:, pairs:]
    moved_from = new.to(torch.int8).argsort(dim=1, descending=True, stable=True)[:, :max_moved]  # new ones come first
    moved_to = free.to(torch.int8).argsort(dim=1, descending=True, stable=True)[:, :max_moved]
    index = torch.arange(max_moved, device=kept.device)
    moved_to = torch.where(index < new.sum(1, keepdim=True), moved_to, pairs + index)  # the others go to padding
    weights = None
    if method.merge_rate:
        tokens = _gather_fields(held[..., pairs:], sources)
        merged = torch.cat([held[..., :pairs], tokens], 2)
        weights = _slot_weights(method, TokenInfo(*merged), TokenInfo(*slots), step, rate)
    is_padding = F.pad(free, (0, held.shape[2] - pairs), value=True)
    moved = torch.where(moved_to >= pairs, padding, _gather_fields(fields[..., pairs:], moved_from))
    after = torch.where(is_padding, padding, held).scatter(2, moved_to.expand(len(held), -1, -1), moved)
    return after, moved_from, moved_to, weights, (new.sum(1) > free.sum(1)).any()


def _gather_fields(fields: Tensor, index: Tensor) -> Tensor:
    """fields (fields, B, C), index (B, K) -> (fields, B, K)."""
    return fields.gather(2, index.expand(len(fields), -1, -1))


def _slot_weights(method: Method, old: TokenInfo, slots: TokenInfo, step: Tensor, rate: Tensor) -> Tensor:
    """The weights of pairs (B, K) in new slots (B, S), as in Memory.merge: fp64 (B, S, K)."""
    new, old = slots.map(lambda field: field[:, :, None]), old.map(lambda field: field[:, None])
    same_slot = new.slot == old.slot  # (B, S, K)
    previous = same_slot & old.is_slot & (old.step == step - method.stride)
    this_step = same_slot & ~old.is_slot & (old.step == step - method.delay)
    mean = this_step.double() / this_step.sum(-1, keepdim=True).clamp(min=1)
    return (1 - rate) * previous + rate * mean


@functools.cache
def _compile(function):
    torch._dynamo.config.recompile_limit = max(64, torch._dynamo.config.recompile_limit)  # for sizes not seen before
    return torch.compile(function)
