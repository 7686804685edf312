"""From a sample to the sequence of the paper's algorithm 1, and from sequences to batches.

    c(1) COMP c(2) COMP ... c(T) COMP I O

Text alone advances the position: COMP token j of a step stands at (text tokens so far) + j, and the text after it
goes on from (text tokens so far). Samples may be packed into one row, one behind the other without padding; a row is
padded only to the longest row of its batch, or to one of a few lengths, so that nothing is compiled for each anew.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from minccm.methods import COMP, PAD, SLOT, TEXT, Columns, Method, columns, visible

NEVER = 2**30  # as the order of a column: no token comes after it


@dataclass
class Layout:
    """One sample as a sequence of N tokens, with M memory slots."""

    tokens: Tensor  # int64 (N,)
    positions: Tensor  # int64 (N,)
    labels: Tensor  # int64 (N,): the token that each place predicts
    weights: Tensor  # fp32 (N,): how much that counts in the loss; 0 where nothing is predicted
    columns: Tensor  # (N, 7), the data of Columns
    slots: Tensor  # (M, 7), likewise
    first: Tensor  # bool (N,): before_memory
    last: Tensor  # bool (N,): asked_last

    def only(self, which: Tensor) -> "Layout":
        """Some of the tokens, bool (N,), as they are, and all slots."""
        fields = {name: x if name == "slots" else x[which] for name, x in vars(self).items()}
        return Layout(**fields)


def segments(tokenizer, sample: dict, reads: bool = True) -> tuple[list[list[int]], list[int], list[int]]:
    """Token ids of (contexts, input, target) of a sample: BOS stands first, a newline begins each later segment.

    A sample may have a "separator" of its own, which then stands before the target as well. reads: False leaves the
    contexts out, and BOS begins the input.
    """
    texts = (sample["contexts"] if reads else []) + [sample["input"]]
    between = tokenizer.after(sample["separator"]) if "separator" in sample else tokenizer.newline
    ids = [tokenizer.encode(text) for text in texts]
    ids = [[tokenizer.bos_id] + ids[0]] + [between + later for later in ids[1:]]
    input = ids[-1] + (between if "separator" in sample else [])
    return ids[:-1], input, tokenizer.encode(sample["target"]) + [tokenizer.eos_id]


def more_segments(tokenizer, sample: dict, count: int, reads: bool = True) -> list[tuple[list[int], list[int]]]:
    """Token ids of (input, target) of the first `count` of a sample's further "questions"."""
    head = {"contexts": [""] * bool(sample["contexts"])}  # whether there is one tells what an input begins with
    pairs = [dict(input=input, target=target) for input, target in sample.get("questions", [])[:count]]
    return [segments(tokenizer, sample | head | pair, reads)[1:] for pair in pairs]


def step_columns(
    method: Method, n: int, lengths: list[int], step: int = 0, start: int = 0, questions: int = 1
) -> tuple[np.ndarray, ...]:
    """The columns of consecutive time steps, of which the parallel layout has all and the recursion one at a time.

    lengths: text tokens of each step. step, start: number of the first step, and order of its first token. questions:
    so many at the end are input and output, of which nothing is compressed; they are one step, and all begin at the
    same position. Returns, over the N tokens of all steps: positions relative to the first token (N,), the data of the
    tokens' columns (N, 7) and of the M slots (M, 7).
    """
    lengths, parts = np.array(lengths, np.int64), np.arange(len(lengths))
    contexts = len(lengths) - questions
    compressed = parts < contexts
    totals = lengths + (n * compressed if method.comp else 0)  # text and COMP tokens of each step
    ends, position = totals.cumsum(), (lengths * compressed).cumsum() - lengths * compressed
    of = np.repeat(parts, totals)  # of which of these each token is
    order = np.arange(len(of))
    place = order - (ends - totals)[of]  # within its step; COMP tokens stand behind the text
    is_comp = place >= lengths[of]
    index = np.where(is_comp, place - lengths[of], -1)
    if method.pools == "text":  # n equal parts of each step's text
        index = np.where(compressed[of], place * n // np.maximum(lengths, 1)[of], -1)
    kind, question = np.where(is_comp, COMP, TEXT), np.maximum(of - contexts + 1, 0)
    at = step + np.minimum(of, contexts)
    tokens = columns(0, kind, at, index, start + order, question, start + order == 0)
    slots = columns()[:0]
    if method.rate is not None:
        if method.pools == "text":  # a step of fewer than n tokens fills fewer slots
            filled = np.unique(np.stack([of[index >= 0], index[index >= 0]]), axis=1)
        else:
            filled = np.stack([np.repeat(parts, n), np.tile(np.arange(n), len(parts))])
        of_slot, part = filled[:, compressed[filled[0]] & (step + filled[0] >= method.delay)]
        slots = columns(0, SLOT, step + of_slot, part, start + ends[of_slot])  # there when the next step begins
    return position[of] + place, tokens, slots


def lay_out(
    method: Method,
    n: int,
    vocab_size: int,
    contexts: list[list[int]],
    input: list[int],
    target: list[int],
    text_weight: float = 0.0,
    answered: list[int] | None = None,
    more: list[tuple[list[int], list[int]]] = (),
) -> Layout:
    """The sequence of one sample, segments given as token ids. COMP token j has the id vocab_size + j.

    The loss is on the target's tokens, each of weight 1. With a text_weight above 0 the other text counts too, each
    token predicted from those before it in its own step: this is how a base model is trained. `answered` tells how many
    tokens at the end of each context are then an answer of weight 1 themselves. `more`: (input, target) of further
    questions, which are asked of the same memory and do not see each other.
    """
    if method.comp == "end":  # one block of COMP tokens: all contexts are one step
        contexts, answered = [sum(contexts, [])] if contexts else [], []
    questions = [(input, target), *more]
    steps = [*(contexts if method.reads else []), *(input + target for input, target in questions)]
    positions, data, slots = step_columns(method, n, [len(text) for text in steps], questions=len(questions))
    tokens = np.empty(len(data), np.int64)
    tokens[data[:, 1] == TEXT] = [token for text in steps for token in text]
    comp = data[:, 1] == COMP
    tokens[comp] = vocab_size + data[comp, 3]
    weights = np.zeros(len(tokens), np.float32)  # of the prediction of the next token
    if text_weight:
        own_step = (data[1:, 2] == data[:-1, 2]) & (data[1:, 5] == data[:-1, 5])
        weights[:-1][(data[1:, 1] == TEXT) & own_step] = text_weight
        for step, count in enumerate(answered or []):
            if count:
                end = np.flatnonzero((data[:, 2] == step) & (data[:, 1] == TEXT))[-1]
                weights[end - count : end] = 1.0
    for question, (_, target) in enumerate(questions, 1):
        end = np.flatnonzero(data[:, 5] == question)[-1]
        weights[end - len(target) : end] = 1.0
    first = before_memory(method, data, weights)
    last = np.ones(len(data), bool) if text_weight else asked_last(method, data, weights)
    arrays = tokens, positions, np.roll(tokens, -1), weights, data, slots, first, last
    return Layout(*map(torch.from_numpy, arrays))


def before_memory(method: Method, data: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Text that no memory comes before, bool (N,), where it is the frozen model's own: no LoRA acts on it.

    None of it where some predicts or is pooled, nor with a sink, which the last block is asked for.
    """
    text = (data[:, 1] == TEXT) & (data[:, 2] == 0) & (data[:, 5] == 0) & (data[:, 3] < 0)
    return text & (method.conditional and not method.sink and not weights[text].any())


def asked_last(method: Method, data: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """What the last block is asked for, bool (N,): tokens that predict, what these see, and what slots are made of.

    The text of a context is not: the keys and values that its COMP tokens read of it are those of the blocks before.
    """
    seen = visible(method, Columns.of(data[weights > 0])[:, None], Columns.of(data)[None])
    return seen.any(0).numpy() | (data[:, 3] >= 0)


def check_length(layout: Layout, max_positions: int) -> None:
    """Raises ValueError for a sample that is longer than a model's positions."""
    if (length := int(layout.positions.max()) + 1) > max_positions:
        raise ValueError(f"a sample of {length} tokens is longer than the model's {max_positions} positions")


@dataclass
class Batch:
    """B rows of N tokens: each row is up to G samples, one behind the other, and then padding.

    Every row ends in padding, to which the padding of `comp_places`, `predicting` and `sources` points.
    """

    tokens: Tensor  # int64 (B, N)
    positions: Tensor  # int64 (B, N)
    labels: Tensor  # int64 (B, N)
    weights: Tensor  # fp32 (B, N)
    columns: Columns  # (B, N, 7)
    slots: Columns  # (B, G * T * n, 7): n slots of each of a sample's steps, PAD where there is none
    comp_places: Tensor  # int64 (B, C): places of COMP tokens in their row
    predicting: Tensor  # int64 (B, R): places in their row that have a weight
    sources: Tensor  # int64 (B, G, T, n, S): places of the S tokens at most of which merging makes a step's part of n
    packed: bool  # does any row hold texts that may not see each other: more than one sample, or question?
    first: "Batch | None" = None  # what is read before, without a gradient, and is then not in here
    last: "Batch | None" = None  # what the last block is asked for (B, L), where that is less than half
    last_places: Tensor | None = None  # int64 (B, L): the places of that in its row

    @property
    def comp(self) -> Tensor:
        """int64 (B * C,): rows of the flattened tokens that are COMP tokens (or padding)."""
        return self.flat(self.comp_places)

    def flat(self, places: Tensor) -> Tensor:
        """Places in their row, int64 (B, P), as rows of the flattened tokens (B * P,)."""
        rows = torch.arange(len(self.tokens), device=self.tokens.device)[:, None]
        return (places + rows * self.tokens.shape[1]).flatten()

    @property
    def count(self) -> int:
        """How many tokens, padding included, and also those that are read before."""
        return self.tokens.numel() + (self.first.count if self.first else 0)

    @property
    def sizes(self) -> tuple[int, ...]:
        """What its shapes depend on, beside B, N, method and n: C, R, G, T, S."""
        samples, steps, _, tokens = self.sources.shape[1:]
        return self.comp_places.shape[1], self.predicting.shape[1], samples, steps, tokens

    def to(self, device) -> "Batch":
        """The same batch on a device."""
        return Batch(**{name: x.to(device) if hasattr(x, "to") else x for name, x in vars(self).items()})

    def split(self) -> list["Batch"]:
        """Each row as a batch of its own, all of the same shape."""
        count, fields = len(self.tokens), {}
        for name, x in vars(self).items():
            if isinstance(x, Batch):
                fields[name] = x.split()
            else:
                fields[name] = [x[i : i + 1] if isinstance(x, Tensor | Columns) else x for i in range(count)]
        return [Batch(**dict(zip(fields, row))) for row in zip(*fields.values())]


def collate(
    rows: list[list[Layout]], multiple: int = 1, least: tuple[int, ...] = (0,) * 5, apart: bool = False
) -> Batch:
    """A batch whose row i packs the samples rows[i]. The number of tokens is padded to a multiple of `multiple`.

    Where that is above 1 the other sizes are rounded up, too: what is compiled for each shape is to meet few. least:
    the `sizes` that they are to have at least. apart: text that no memory comes before becomes a batch of its own, as
    nothing that trains has to do with it.
    """
    first, finer = None, max(min(multiple, 128), multiple // 8)  # parts of a row are rounded up to a part of that
    if apart and all(layout.first.any() for row in rows for layout in row):
        alone = [[layout.only(layout.first) for layout in row] for row in rows]
        first = collate([[replace(x, slots=x.slots[:0], last=x.first) for x in row] for row in alone], finer)
        rows = [[layout.only(~layout.first) for layout in row] for row in rows]
    tokens, positions, labels, weights, data = (_stack(field, multiple) for field in zip(*map(_pack, rows)))

    def size(which: int, count: int, up=lambda count: power(count, 128)) -> int:
        return max(least[which], up(count) if multiple > 1 else count)

    comp_places = _places(data[..., 1] == COMP, lambda count: size(0, count))
    predicting = _places(weights > 0, lambda count: size(1, count))
    slots, sources = _merged(rows, data.shape[1] - 1, size)
    packed = any(row[1:] or int(row[0].columns[:, 5].max()) > 1 for row in rows)
    made = tokens, positions, labels, weights, Columns(data), Columns(slots.flatten(1, 3))
    batch = Batch(*made, comp_places, predicting, sources, packed, first)
    which = _stack(tuple(torch.cat([layout.last for layout in row]) for row in rows), multiple)
    if 2 * _up(int(which.sum(1).max()) + 1, finer) < tokens.shape[1]:
        batch.last = collate([[layout.only(layout.last) for layout in row] for row in rows], finer, least)
        batch.last_places = _places(which, lambda count: batch.last.tokens.shape[1])
    return batch


def _merged(rows: list[list[Layout]], pad: int, size: Callable[..., int]) -> tuple[Tensor, Tensor]:
    """The data of slots (B, G, T, n, 7), and sources (B, G, T, n, S); where nothing is merged T is 0. See Batch."""
    n_samples = size(2, max(map(len, rows)), lambda count: power(count, 8))
    unused = torch.from_numpy(columns(sample=np.arange(n_samples), kind=PAD, order=NEVER))[:, None, None]
    made = torch.cat([layout.slots for row in rows for layout in row])
    if not len(made):
        return unused.repeat(len(rows), 1, 0, 0, 1), torch.zeros(len(rows), n_samples, 0, 0, 0, dtype=torch.int64)
    n_steps, n_parts = size(3, int(made[:, 2].max()) + 1, lambda count: _up(count, 8)), int(made[:, 3].max()) + 1
    slots = unused.repeat(len(rows), 1, n_steps, n_parts, 1)
    found = []  # of each token that goes into a slot: row, sample, step, part, number there, and place in the row
    for i, row in enumerate(rows):
        start = 0
        for j, layout in enumerate(row):
            slots[i, j, layout.slots[:, 2], layout.slots[:, 3]] = _numbered(layout.slots, j)
            place = (layout.columns[:, 3] >= 0).nonzero()[:, 0]  # columns of index >= 0 go into slots
            step, part = layout.columns[place][:, 2:4].unbind(1)
            counts = (step * n_parts + part).unique_consecutive(return_counts=True)[1]  # those of a part are neighbours
            number = torch.arange(len(place)) - (counts.cumsum(0) - counts).repeat_interleave(counts)
            found.append([torch.full_like(place, i), torch.full_like(place, j), step, part, number, place + start])
            start += len(layout.tokens)
    *at, number, place = (torch.cat(field) for field in zip(*found))
    sources = torch.full((*slots.shape[:4], size(4, int(number.max()) + 1, lambda count: power(count, 1))), pad)
    sources[(*at, number)] = place
    return slots, sources


def _places(which: Tensor, size: Callable[[int], int]) -> Tensor:
    """Where `which`, bool (B, N), is true: int64 (B, size(the longest row's number)), filled up with the last place."""
    places = [row.nonzero()[:, 0] for row in which]
    out = torch.full((len(which), size(max(map(len, places)))), which.shape[1] - 1)
    for row, found in zip(out, places):
        row[: len(found)] = found
    return out


def group(lengths: list[int], budget: int) -> list[list[int]]:
    """Indices of sequences in groups of like length, each of at most `budget` tokens when padded (at least one)."""
    groups, longest = [], 0
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        if not groups or longest * (len(groups[-1]) + 1) > budget:
            groups.append([])
            longest = lengths[index]
        groups[-1].append(index)
    return groups


def pack(lengths: list[int], budget: int, multiple: int = 128) -> list[list[int]]:
    """Indices of sequences in rows without padding, each of fewer than `budget` tokens (or one longer sequence).

    As few rows as can be, about equally full, so that the longest, rounded up to `multiple`, wastes little of the
    others: first fit, with the longest sequences first.
    """
    total, longest = sum(lengths), max(lengths)
    capacity = _up(max(-(-total // max(1, -(-total // budget))), longest) + 1, multiple)  # a row ends in padding
    while True:
        rows, room = [], []
        for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
            row = next((i for i, left in enumerate(room) if left >= lengths[index]), None)
            if row is None:
                row = len(rows)
                rows.append([])
                room.append(min(capacity, max(budget, longest + 1)) - 1)
            rows[row].append(index)
            room[row] -= lengths[index]
        if capacity >= budget or len(rows) <= -(-total // budget):
            return rows
        capacity += multiple


def _up(count: int, multiple: int) -> int:
    return -(-count // multiple) * multiple


def power(count: int, least: int) -> int:
    """`count` rounded up to a power of two, from `least` on; or 0."""
    return max(least, 1 << (count - 1).bit_length()) if count else 0


def _numbered(data: Tensor, sample: int) -> Tensor:
    """The data of a sample's columns (C, 7) when it is sample number `sample` of its row."""
    return data + torch.from_numpy(columns(sample=sample, kind=0, index=0))


def _pack(row: list[Layout]) -> tuple[Tensor, ...]:
    """One behind the other: tokens, positions, labels, weights, and columns numbered by sample."""
    parts = [(*tuple(vars(layout).values())[:4], _numbered(layout.columns, i)) for i, layout in enumerate(row)]
    return tuple(map(torch.cat, zip(*parts)))


def _stack(rows: tuple[Tensor, ...], multiple: int) -> Tensor:
    """Rows of unequal length as one tensor (B, N, ...), N above each of them; padding is 0, or PAD columns."""
    longest = _up(max(len(row) for row in rows) + 1, multiple)
    out = torch.zeros(len(rows), longest, *rows[0].shape[1:], dtype=rows[0].dtype)
    if out.ndim == 3:  # each a sample of its own, that sees itself and nothing else
        out += torch.from_numpy(columns(sample=-1 - np.arange(longest), kind=PAD))
    for i, row in enumerate(rows):
        out[i, : len(row)] = row
    return out
