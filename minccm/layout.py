"""From a sample to the sequence of the paper's algorithm 1, and from sequences to batches.

    c(1) COMP c(2) COMP ... c(T) COMP I O

Text alone advances the position: COMP token j of a step stands at (text tokens so far) + j, and the text after it goes on
from (text tokens so far). Samples may be packed into one row, one behind the other without padding; a row is padded only
to the longest row of its batch.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from minccm.methods import COMP, PAD, SLOT, TEXT, Columns, Method, columns


@dataclass
class Layout:
    """One sample as a sequence of N tokens, with M memory slots."""

    tokens: Tensor  # int64 (N,)
    positions: Tensor  # int64 (N,)
    labels: Tensor  # int64 (N,): the token that each place predicts
    weights: Tensor  # fp32 (N,): how much that counts in the loss; 0 where nothing is predicted
    columns: Columns  # (N, 7)
    slots: Columns  # (M, 7)


def segments(tokenizer, sample: dict, reads: bool = True) -> tuple[list[list[int]], list[int], list[int]]:
    """Token ids of (contexts, input, target) of a sample: BOS stands first, a newline begins each later segment.

    reads: False leaves the contexts out, and BOS begins the input.
    """
    texts = (sample["contexts"] if reads else []) + [sample["input"]]
    ids = [tokenizer.encode(text) for text in texts]
    ids = [[tokenizer.bos_id] + ids[0]] + [tokenizer.newline + later for later in ids[1:]]
    return ids[:-1], ids[-1], tokenizer.encode(sample["target"]) + [tokenizer.eos_id]


def step_columns(method: Method, n: int, step: int, length: int, start: int, last: bool) -> tuple[Tensor, Columns, Columns]:
    """Offsets from the position of the step's first token (N,), columns (N, 7) and slots (M, 7) of one time step.

    length: of the step's text. start: order of its first token. The parallel layout and the recursion both use this.
    """
    comp = n if method.comp and not last else 0
    text = torch.arange(length)
    part = text * n // max(length, 1) if method.pools == "text" and not last else torch.full_like(text, -1)
    parts = [
        columns(0, TEXT, step, part, start + text, last, (start + text) == 0),
        columns(0, COMP, step, torch.arange(comp), start + length + torch.arange(comp)),
    ]
    offsets = torch.cat([text, length + torch.arange(comp)])
    filled = part.unique() if method.pools == "text" else torch.arange(n)  # a step of fewer than n tokens fills fewer slots
    if method.rate is None or last or step < method.delay:
        filled = filled[:0]
    slots = columns(0, SLOT, step, filled, start + length + comp)  # ready when the next step begins
    return offsets, Columns(torch.cat([part.data for part in parts])), slots


def lay_out(
    method: Method,
    n: int,
    vocab_size: int,
    contexts: list[list[int]],
    input: list[int],
    target: list[int],
    text_weight: float = 0.0,
) -> Layout:
    """The sequence of one sample, segments given as token ids. COMP token j has the id vocab_size + j.

    The loss is on the target's tokens, each of weight 1. With a text_weight above 0 the other text counts too, each
    token predicted from those before it in its own step: this is how a base model is trained.
    """
    if method.comp == "end":  # one block of COMP tokens: all contexts are one step
        contexts = [sum(contexts, [])] if contexts else []
    steps = [*(contexts if method.reads else []), input + target]
    comp_ids = list(range(vocab_size, vocab_size + n))
    tokens, positions, parts, slots, position = [], [], [], [], 0
    for step, text in enumerate(steps):
        last = step == len(steps) - 1
        offsets, part, slot = step_columns(method, n, step, len(text), len(tokens), last)
        tokens += text + (comp_ids if method.comp and not last else [])
        positions.append(position + offsets)
        position += len(text)
        parts.append(part.data)
        slots.append(slot.data)
    tokens, cols = torch.tensor(tokens, dtype=torch.long), Columns(torch.cat(parts))
    labels = tokens.roll(-1)  # the place before a token predicts it
    weights = torch.zeros(len(tokens))
    weights[:-1][cols.text[1:] & (cols.step[1:] == cols.step[:-1])] = text_weight
    weights[-len(target) - 1 : -1] = 1.0
    return Layout(tokens, torch.cat(positions), labels, weights, cols, Columns(torch.cat(slots)))


@dataclass
class Batch:
    """B rows of N tokens and M slots, each row one or more samples and then padding."""

    tokens: Tensor  # int64 (B, N)
    positions: Tensor  # int64 (B, N)
    labels: Tensor  # int64 (B, N)
    weights: Tensor  # fp32 (B, N)
    columns: Columns  # (B, N, 7)
    slots: Columns  # (B, M, 7)
    comp: Tensor  # int64 (C,): rows of the flattened tokens that are COMP tokens
    sources: Tensor  # int64 (B, S): places of the tokens that slots are made of

    def to(self, device) -> "Batch":
        return Batch(**{name: value.to(device) for name, value in vars(self).items()})


def collate(rows: list[list[Layout]], multiple: int = 1) -> Batch:
    """A batch whose row i packs the samples rows[i]. The number of tokens is padded to a multiple of `multiple`."""
    tokens, positions, labels, weights, data, slots = (_stack(field, multiple) for field in zip(*map(_pack, rows)))
    pools = [(row[:, 3] >= 0).nonzero()[:, 0] for row in data]  # columns of index >= 0 go into slots
    longest = max(len(pool) for pool in pools) if slots.shape[1] else 0
    sources = torch.full((len(rows), longest), data.shape[1] - 1)  # a row's last column is never pooled: it pads
    for row, pool in zip(sources, pools):
        row[: len(pool)] = pool[:longest]
    comp = (data[..., 1] == COMP).flatten().nonzero()[:, 0]
    return Batch(tokens, positions, labels, weights, Columns(data), Columns(slots), comp, sources)


def group(lengths: list[int], budget: int) -> list[list[int]]:
    """Indices of sequences in groups of like length, each of at most `budget` tokens when padded (but of one at least)."""
    groups, longest = [], 0
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        if not groups or longest * (len(groups[-1]) + 1) > budget:
            groups.append([])
            longest = lengths[index]
        groups[-1].append(index)
    return groups


def _pack(row: list[Layout]) -> tuple[Tensor, ...]:
    """One behind the other: tokens, positions, labels, weights, columns and slots, these numbered by sample and place."""
    shifts, start = [], 0
    for i, layout in enumerate(row):
        shifts.append(columns(sample=i, kind=0, index=0, order=start).data)
        start += len(layout.tokens)
    return (
        torch.cat([layout.tokens for layout in row]),
        torch.cat([layout.positions for layout in row]),
        torch.cat([layout.labels for layout in row]),
        torch.cat([layout.weights for layout in row]),
        torch.cat([layout.columns.data + shift for layout, shift in zip(row, shifts)]),
        torch.cat([layout.slots.data + shift for layout, shift in zip(row, shifts)]),
    )


def _stack(rows: tuple[Tensor, ...], multiple: int) -> Tensor:
    """Rows of unequal length as one tensor (B, longest, ...); padding is 0, or PAD columns."""
    longest = -(-max(len(row) for row in rows) // multiple) * multiple
    pad = columns(sample=-1, kind=PAD).data
    out = torch.zeros(len(rows), longest, *rows[0].shape[1:], dtype=rows[0].dtype)
    out += pad if out.ndim == 3 else 0
    for i, row in enumerate(rows):
        out[i, : len(row)] = row
    return out
