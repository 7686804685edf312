"""Online and fast: many conversations at once, in buffers whose shape never changes (paper: figure 5, table 1).

A compressed memory does not grow, so neither need a shape. For each layer there is one buffer of `pairs` columns of
memory, and behind them the columns of the turn that goes on:

    [ memory: pairs | what is read now, with its COMP tokens; or input and output ]

What a place holds is told by its column, PAD where it is empty; who sees whom is asked of methods.visible, as
everywhere. So every turn of every conversation, at whatever time step, is the same work at the same places, and on a
GPU one CUDA graph, captured once, is replayed for it: one to read, one to begin an answer, one for each token of it.

    talks = Conversations(model, method, n, batch=2, pairs=16, turn=64, output=32)
    talks.read([ids, None])            # the second says nothing this time
    talks.generate([ids, ids])         # two answers

FastSession is an online.Session that answers so. The numbers are a Session's, to rounding: tests/test_fast.py.
"""

import functools
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from minccm.graphs import capture
from minccm.layout import step_columns
from minccm.lora import lora_gate
from minccm.memory import Memory, slot_weights
from minccm.methods import PAD, Columns, Method, columns, merge_rate, visible
from minccm.model import Block, Transformer, attention, rope_table
from minccm.online import Session, sample

if torch.cuda.is_available():
    from minccm.kernel import attend, product


class Buffered:
    """The view of one layer: all of its buffer, of which the columns at `place` (T,) are written."""

    def __init__(self, keys: Tensor, values: Tensor, place: Tensor, bias: Tensor):
        self.keys, self.values, self.place, self.bias = keys, values, place, bias

    def extend(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """keys and values (B, H, T, head_dim) -> (B, H, C, head_dim)."""
        self.keys.index_copy_(2, self.place, keys)
        self.values.index_copy_(2, self.place, values)
        return self.keys, self.values

    def attend(self, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        width = queries.shape[3]
        if queries.is_cuda and width >= 16 and width & (width - 1) == 0:
            return attend(queries, keys, values, self.bias)
        return attention(queries, keys, values, self.bias[:, None])


def one_token(block: Block, x: Tensor, layer: int, cos: Tensor, sin: Tensor, view, gate, rows=None) -> Tensor:
    """Block.forward for one token of one conversation, x (1, 1, dim), by kernel.product; gate and rows are None."""
    attention, mlp, before, after = block.self_attn, block.mlp, block.input_layernorm, block.post_attention_layernorm
    qkv = product(x, attention.qkv, before.weight, before.eps)
    sizes = [p.weight.shape[0] for p in (attention.q_proj, attention.k_proj, attention.v_proj)]
    y = attention.attend(qkv.split(sizes, -1), layer, cos, sin, view)
    x = product(y, attention.o_proj.weight, add=x)
    y = product(x, mlp.gate_up, after.weight, after.eps, gated=True)
    return product(y, mlp.down_proj.weight, add=x)


class Conversations:
    """A batch of conversations with a model, their contexts held as memory of `method`, n COMP tokens a step.

    pairs: KV pairs of memory that one conversation may hold. turn: the most tokens of a context, or of an input.
    output: the most tokens of an answer. adapted: False leaves the model's adapter out. graphs: replay CUDA graphs of
    compiled code; by default on a GPU. The model's adapter is rounded to the dtype of its weights, see lora.join_lora.
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
        adapted: bool = True,
        graphs: bool | None = None,
    ):
        config, weight = model.config, model.embed_tokens.weight
        self.model, self.method, self.n, self.adapted = model, method.of(model), n, adapted
        self.batch, self.pairs, self.turn, self.output = batch, pairs, turn, output
        self.device = weight.device
        model.join_lora()
        self.graphs = {} if (weight.is_cuda if graphs is None else graphs) else None
        self.alone = batch == 1 and weight.is_cuda and model.layers[0].mlp.gate_up is not None  # see one_token
        comp = n if method.comp else 0
        width = -(-(pairs + turn + max(comp, output)) // 16) * 16
        shape = config.n_layers, batch, config.n_kv_heads, width, config.head_dim
        self.keys = torch.zeros(shape, dtype=weight.dtype, device=self.device)  # (layers, B, H, C, head_dim)
        self.values = torch.zeros_like(self.keys)
        self.columns = torch.empty(batch, width, 7, dtype=torch.int64, device=self.device)
        self.pad = torch.from_numpy(columns(sample=-1, kind=PAD)[0]).to(self.device)
        self.reset()
        slots = n if method.rate else 0
        self.stages = {
            "read": Stage(self, turn + comp, pairs, comp, slots, predicts=False),
            "input": Stage(self, turn, pairs),
            "token": Stage(self, 1, pairs + turn),
        }
        self.frequencies = model.frequencies.to(self.device)
        self.logits_ = torch.empty(batch, config.vocab_size, dtype=weight.dtype, device=self.device)
        self.full = torch.zeros((), dtype=torch.bool, device=self.device)
        self.most = self._most_kept()

    def reset(self, which: list[int] | None = None) -> None:
        """Begins conversations anew: those of these numbers, or all."""
        if which is None:
            which = slice(None)
            self.step, self.position, self.tokens = (np.zeros(self.batch, np.int64) for _ in range(3))
        self.step[which] = self.position[which] = self.tokens[which] = 0
        self.columns[which] = self.pad

    @torch.no_grad()
    def put(self, memory: Memory, which: int = 0) -> None:
        """A conversation goes on from a memory, such as a Session's. Raises ValueError where `pairs` are too few."""
        if len(memory) > self.pairs:
            raise ValueError(f"a memory of {len(memory)} pairs is more than {self.pairs}: give a larger `pairs`")
        self.reset([which])
        held = slice(len(memory))
        self.keys[:, which, :, held], self.values[:, which, :, held] = memory.keys, memory.values
        self.columns[which, held] = memory.columns.data
        self.step[which], self.position[which], self.tokens[which] = memory.step, memory.position, memory.tokens

    @torch.no_grad()
    def read(self, texts: list[list[int] | None]) -> None:
        """Compresses a context of each conversation, given as token ids, into its memory; None: there is none.

        Raises ValueError where a text is too long, or where a memory would hold more than `pairs`, which is then lost.
        """
        if not self.method.reads:
            return
        stage = self._lay_out("read", texts, last=False)
        there = np.array([text is not None for text in texts])
        lengths = np.array([len(text or ()) for text in texts])
        added = lengths + (self.n if self.method.comp else 0)
        if self.method.rate:
            stage.host["step"][:, 0, 0] = self.step
            for t in set(self.step[self.step >= self.method.delay].tolist()):
                stage.host["rate"][self.step == t, :, 0] = merge_rate(self.method, t).tolist()
        self.step, self.position, self.tokens = (
            self.step + there,
            self.position + lengths * there,
            self.tokens + added * there,
        )
        for i, (t, order) in enumerate(zip(self.step, self.tokens)):
            stage.host["later"][i] = columns(step=t, order=order, question=np.arange(2))
        stage.send()
        self._replay("read", self._read, self._update)
        if self.full:
            raise ValueError(f"the memory holds {self.pairs} pairs and no more: give a larger `pairs`")

    @torch.no_grad()
    def logits(self, texts: list[list[int]]) -> Tensor:
        """Logits (B, vocab_size) of the token behind each input, from the memory, which stays as it is."""
        self._lay_out("input", texts, last=True).send()
        self.columns[:, self.pairs :] = self.pad
        self._replay("input", self._input)
        return self.logits_

    def generate(
        self, texts: list[list[int]], max_tokens: int | None = None, *, stop: bool = True, **sampling
    ) -> list[list[int]]:
        """The answer to each input, token ids up to EOS (stop=False goes on past it). The memory stays as it is.

        max_tokens: at most `output`, which it is by default. sampling: as of `stream`.
        """
        answers, eos = [], self.model.config.eos_id
        ended = torch.zeros(self.batch, dtype=torch.bool, device=self.device)
        for i, tokens in enumerate(self.stream(texts, self.output if max_tokens is None else max_tokens, **sampling)):
            answers.append(tokens)
            ended |= tokens == eos
            if stop and i % 16 == 15 and ended.all():  # looked at now and then: it waits
                break
        rows = torch.stack(answers, 1).tolist()
        return [row[: row.index(eos)] if stop and eos in row else row for row in rows]

    @torch.no_grad()
    def stream(
        self,
        texts: list[list[int]],
        max_tokens: int,
        temperature: float = 0.0,
        top_p: float = 1.0,
        generator: torch.Generator | None = None,
    ) -> Iterator[Tensor]:
        """Yields the next token of each answer, int64 (B,), max_tokens times, whatever it is. The memory stays.

        temperature, top_p: as of online.Session.generate. Raises ValueError for more tokens than `output`.
        """
        if max_tokens > self.output:
            raise ValueError(f"an answer of {max_tokens} tokens is longer than the {self.output} there is room for")
        logits = self.logits(texts)
        stage, lengths = self.stages["token"], torch.tensor([len(text) for text in texts])
        stage.positions.copy_((torch.from_numpy(self.position) + lengths)[:, None])
        data = [columns(step=t, order=order, question=1) for t, order in zip(self.step, self.tokens + lengths.numpy())]
        stage.data.copy_(torch.from_numpy(np.stack(data)))
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
            self.columns[:, self.pairs :] = self.pad

    def __len__(self) -> int:
        """KV pairs held by the conversation that holds the most."""
        return int((self.columns[..., 1] != PAD).sum(1).max())

    def _lay_out(self, name: str, texts: list[list[int] | None], last: bool) -> "Stage":
        """A stage whose inputs on the host are filled from token ids."""
        stage, vocab_size = self.stages[name], self.model.config.vocab_size
        if len(texts) != self.batch:
            raise ValueError(f"{len(texts)} texts are given to {self.batch} conversations")
        if (longest := max(len(text or ()) for text in texts)) > self.turn:
            raise ValueError(f"a text of {longest} tokens is longer than a turn of {self.turn}: split it")
        tokens, positions, data, comp, ends = stage.empty("tokens", "positions", "data", "comp", "ends")
        slots, comp = stage.empty("slots")[0], comp.reshape(self.batch, -1)
        one_step = functools.cache(lambda length, *where: step_columns(self.method, self.n, [length], *where, last))
        for i, text in enumerate(texts):
            if text is None:
                comp[i] = i * stage.width + np.arange(stage.comp_tokens)  # some rows of its padding
                continue
            first = int(self.tokens[i] > 0)  # all but the first step differ in nothing but the order
            offsets, added, new = one_step(len(text), int(self.step[i]), first)
            size = len(offsets)
            tokens[i, : len(text)], tokens[i, len(text) : size] = text, vocab_size + np.arange(size - len(text))
            positions[i, :size], data[i, :size], slots[i, : len(new)] = self.position[i] + offsets, added, new
            data[i, :size, 4] += self.tokens[i] - first
            slots[i, : len(new), 4] += self.tokens[i] - first
            comp[i] = i * stage.width + len(text) + np.arange(stage.comp_tokens)
            ends[i] = i * stage.width + size - 1
        return stage

    def _forward(self, stage: "Stage") -> Tensor:
        """The model on a stage's tokens (B, T), their keys and values written to the buffers: hidden (B, T, dim).

        Of a context that is read the last block is asked for nothing else: (1, 0, dim).
        """
        tokens, place, data, positions = stage.tokens, stage.place, stage.data, stage.positions
        before = self._made(_before)
        counted = place, data, positions, stage.count
        place, bias, cos, sin = before(self.method, self.columns, *counted, self.frequencies, self.keys.dtype)
        x = self.model.embed(tokens, stage.comp if stage.comp_tokens else None)
        gate = lora_gate(stage.comp if stage.comp_tokens else None, self.method.conditional, self.adapted)
        run = self._made(one_token if self.alone and stage.width == 1 and gate is None else Block.forward)
        for layer, block in enumerate(self.model.layers):
            view = Buffered(self.keys[layer], self.values[layer], place, bias)
            rows = stage.nothing if layer + 1 == len(self.model.layers) else None
            x = run(block, x, layer, cos, sin, view, gate, rows)
        return x

    def _input(self) -> None:
        stage = self.stages["input"]
        x = self._forward(stage).flatten(0, 1)[stage.ends]  # (B, dim)
        self.logits_.copy_(self.model.logits(x))

    def _token(self) -> None:
        x = self._forward(self.stages["token"])[:, 0]
        norm, head = self.model.norm, self.model.lm_head.weight
        self.logits_.copy_(product(x, head, norm.weight, norm.eps) if self.alone else self.model.logits(x))

    def _read(self) -> None:
        stage = self.stages["read"]
        self._forward(stage)
        moves = self._made(_moves)
        of_step = stage.slots, stage.later, stage.step, stage.rate
        self.moves = moves(self.method, self.columns, *of_step, self.pad, self.pairs, self.most)

    def _update(self) -> None:
        """g_update, as Memory.updated: what later steps see moves to free places of the memory, the rest is dropped."""
        (after, source, place, weights, full), pairs = self.moves, self.pairs
        for buffer in (self.keys, self.values):
            moved = buffer[..., pairs:, :]
            if weights is not None:
                merged = weights[:, None].to(buffer.dtype) @ buffer
                moved = torch.cat([moved, merged], 3)  # (layers, B, H, C - pairs + S, head_dim)
            index = lambda at: at[None, :, None, :, None].expand(*buffer.shape[:3], -1, buffer.shape[4])  # noqa: B023
            buffer.scatter_(3, index(place), moved.gather(3, index(source)))
        self.columns.copy_(after)
        self.full.copy_(full)

    def _most_kept(self) -> int:
        """How many columns of a step, with its slots, later steps see at most."""
        most = 0
        for step in range(self.method.delay + 2):
            start = step * self.turn
            _, added, slots = step_columns(self.method, self.n, [self.turn], step, start, questions=0)
            later = Columns.of(columns(step=step + 1, order=start + len(added), question=np.arange(2)))
            data = Columns.of(np.concatenate([added, slots]))
            most = max(most, int(visible(self.method, later[:, None], data[None]).any(0).sum()))
        return min(most, self.pairs)

    def _made(self, function):
        """A function as it is done here: compiled, where graphs are captured."""
        return function if self.graphs is None else _compiled(function)

    def _replay(self, name: str, work, then=lambda: None) -> None:
        """Does the work of a stage: by its CUDA graph, which is captured when it is first wanted."""
        if self.graphs is None:
            work()
            return then()
        if name not in self.graphs:
            pool = next((graph.pool() for graph in self.graphs.values()), None)  # shared: they take turns
            self.graphs[name] = capture(work, then, pool)  # `then` is not to be done twice
        self.graphs[name].replay()


class Stage:
    """The inputs of one kind of work, in fixed places: `width` tokens of each conversation, written from `start` on.

    Those that the host fills, in `host`, lie one behind the other and are sent at once.
    """

    def __init__(self, talks: Conversations, width: int, start: int, comp=0, slots=0, predicts: bool = True):
        batch, self.width, self.comp_tokens = talks.batch, width, comp
        shapes = {
            "tokens": (batch, width),
            "positions": (batch, width),
            "data": (batch, width, 7),  # of the tokens' columns
            "comp": (batch * comp,),  # rows of the flattened tokens that are COMP tokens
            "ends": (batch,),  # rows of the flattened tokens that are the last of their text
            "slots": (batch, slots, 7),  # of an update: the slots that a step brings,
            "later": (batch, 2, 7),  # queries of the step to come,
            "step": (batch, 1, 1),  # the step,
            "rate": (batch, slots, 1),  # and its rate, float64
        }
        sizes = [int(np.prod(shape)) for shape in shapes.values()]
        self.on_host = np.zeros(sum(sizes), np.int64)
        self.on_device = torch.zeros(sum(sizes), dtype=torch.int64, device=talks.device)
        self.host = {}
        cuts = np.cumsum(sizes)[:-1]
        parts = np.split(self.on_host, cuts), self.on_device.split(sizes)
        for (name, shape), here, there in zip(shapes.items(), *parts):
            if name == "rate":
                here, there = here.view(np.float64), there.view(torch.float64)
            self.host[name] = here.reshape(shape)
            setattr(self, name, there.view(shape))
        self.place = torch.arange(start, start + width, device=talks.device)  # of these columns in the buffers
        self.count = torch.zeros((), dtype=torch.int64, device=talks.device)  # this is so many tokens later than told
        self.nothing = None if predicts else self.count.new_zeros(0)  # rows that are predicted from

    def empty(self, *names: str) -> list[np.ndarray]:
        """Inputs on the host, with nothing in them."""
        for name in names:
            self.host[name][...] = columns(sample=-1, kind=PAD) if name in ("data", "slots") else 0
        return [self.host[name] for name in names]

    def send(self) -> None:
        """The inputs go from the host to the device."""
        self.on_device.copy_(torch.from_numpy(self.on_host))


class FastSession(Session):
    """A Session whose answers come from fixed buffers, into which its memory is put. It reads as a Session reads."""

    def __init__(self, model: Transformer, method: Method, n: int, adapted: bool = True):
        super().__init__(model, method, n, adapted)
        model.join_weights()
        self.sizes, self.talks = (256, 256, 64), None  # pairs, tokens of an input, of an answer

    def generate(self, ids: list[int], max_tokens: int = 64, *, stop=True, **sampling) -> Iterator[int]:
        """As Session.generate, one answer at a time. Buffers that are too small are made anew, twice as large."""
        self._check(ids)
        sizes = tuple(
            max(size, 1 << (need - 1).bit_length())
            for size, need in zip(self.sizes, (len(self.memory), len(ids), max_tokens))
        )
        if self.talks is None or sizes != self.sizes:
            pairs, turn, output = self.sizes = sizes
            self.talks = None  # first, so that there are never two
            self.talks = Conversations(self.model, self.method, self.n, 1, pairs, turn, output, self.adapted)
        self.talks.put(self.memory)
        for token in map(int, self.talks.stream([ids], max_tokens, **sampling)):
            if stop and token == self.model.config.eos_id:
                return
            yield token


def _before(method: Method, held: Tensor, place, data, positions, count, frequencies, dtype):
    """Writes columns (B, T, 7) to their place in `held` (B, C, 7). Returns place, bias (B, T, C), cos, sin."""
    order = torch.zeros(7, dtype=torch.int64, device=data.device)
    order[4] = 1
    data = data + count * order
    held.index_copy_(1, place + count, data)
    seen = visible(method, Columns(data)[:, :, None], Columns(held)[:, None])
    bias = torch.zeros(seen.shape, dtype=dtype, device=held.device).masked_fill(~seen, -torch.inf)
    return place + count, bias, *rope_table(positions + count, frequencies, dtype)


def _moves(method: Method, held: Tensor, slots, later, step, rate, pad, pairs: int, count: int):
    """What an update does with the columns `held` (B, C, 7) and slots (B, S, 7), of which no more than `count` move.

    Returns the columns as they are afterwards (B, C, 7); from where, counted from `pairs` on, to which places columns
    move, both (B, count); the weights of the slots (B, S, C), or None; and whether there is too little room.
    """
    have, data = Columns(held), torch.cat([held, slots], 1)  # (B, C + S, 7)
    kept = visible(method, Columns(later)[:, :, None], Columns(data)[:, None]).any(1)  # (B, C + S)
    free, new = ~kept[:, :pairs], kept[:, pairs:]
    source = new.to(torch.int8).argsort(dim=1, descending=True, stable=True)[:, :count]  # those that move come first
    place = free.to(torch.int8).argsort(dim=1, descending=True, stable=True)[:, :count]
    some = torch.arange(count, device=held.device)
    place = torch.where(some < new.sum(1, keepdim=True), place, pairs + some)  # else to where nothing is
    weights = slot_weights(method, have, Columns(slots), step, rate) if slots.shape[1] else None
    moved = data[:, pairs:].gather(1, source[..., None].expand(-1, -1, 7))
    after = torch.where(free[..., None], pad, held[:, :pairs])
    after = torch.cat([after, pad.expand(len(held), held.shape[1] - pairs, 7)], 1)
    after = after.scatter(1, place[..., None].expand(-1, -1, 7), moved)
    after[:, pairs:] = pad
    return after, source, place, weights, (new.sum(1) > free.sum(1)).any()


@functools.cache
def _compiled(function):
    torch._dynamo.config.recompile_limit = max(64, torch._dynamo.config.recompile_limit)  # for sizes it has not met
    return torch.compile(function)
