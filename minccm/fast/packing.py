"""Packing: samples one after another in rows without padding, and batches of few shapes.

Code that is compiled for a shape is compiled again for the next one, so rows and index tensors are rounded up to a few
sizes. Two parts of a row cost less than the rest, and become batches of their own:

    prefix   the first context's text. No LoRA acts on it and no memory comes before it, so it runs under no_grad
    last     the tokens that the last layer needs. The text of a context is not among them: COMP tokens read it through
             the keys and values of the layers before
"""

from collections.abc import Callable
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from minccm.methods import COMP, PAD, Method, TokenInfo, attention_mask
from minccm.sequence import LATEST, Sequence


@dataclass(frozen=True)
class PackedInfo:
    """TokenInfo, and for each token its document: the number of its sample in the row. One tensor, so one copy."""

    data: Tensor  # int64 (6, B, N): the fields of TokenInfo, then the document; below 0 for padding

    info = property(lambda self: TokenInfo(*self.data[:-1]))  # (B, N)
    document = property(lambda self: self.data[-1])  # (B, N)

    def __len__(self) -> int:
        """N: tokens or slots in a row."""
        return self.data.shape[-1]

    @staticmethod
    def cat(parts: list["PackedInfo"]) -> "PackedInfo":
        """The parts one after another along the last dimension."""
        return PackedInfo(torch.cat([part.data for part in parts], -1)) if len(parts) > 1 else parts[0]

    def to(self, device) -> "PackedInfo":
        """The same on a device."""
        return PackedInfo(self.data.to(device))


def packed_attention_mask(method: Method, q: PackedInfo, k: PackedInfo) -> Tensor:
    """The rule of methods.attention_mask, within one document: bool (..., Q, K)."""
    same_document = q.document[..., :, None] == k.document[..., None, :]
    return same_document & attention_mask(method, q.info, k.info)


def _data(info: TokenInfo) -> Tensor:
    """The fields of TokenInfo as one tensor (5, N)."""
    return torch.stack([getattr(info, field.name) for field in fields(TokenInfo)])


def prefix_mask(method: Method, sequence: Sequence) -> Tensor:
    """The text that can run under no_grad, bool (N,): no LoRA acts on it, and no memory comes before it.

    It is empty if some of this text has a loss or is pooled, or with a sink, which the last layer needs.
    """
    info = sequence.info
    text = info.is_text & (info.step == 0) & ~info.is_query & (info.slot < 0)
    return text & (method.conditional and not method.sink and not bool((sequence.loss_weights[text] > 0).any()))


def last_layer_mask(method: Method, sequence: Sequence) -> Tensor:
    """The tokens that the last layer needs, bool (N,): those with a loss, keys they attend to, and merged tokens."""
    predicts = sequence.loss_weights > 0
    if 2 * int(predicts.sum()) > len(predicts):  # most of them
        return torch.ones_like(predicts)
    attended = attention_mask(method, sequence.info[predicts], sequence.info)
    return attended.any(0) | (sequence.info.slot >= 0) | predicts


@dataclass
class PackedBatch:
    """B rows of N tokens: each row has up to G samples, one after another, and then padding.

    Every row ends in padding. The padding of the index tensors points to this last token, with a loss weight of 0.
    """

    tokens: Tensor  # int64 (B, N)
    positions: Tensor  # int64 (B, N)
    info: PackedInfo  # (B, N)
    slots: PackedInfo  # (B, G * T * n): n slots for each of a sample's steps; PAD where there is no slot
    comp_index: Tensor  # int64 (B, C): where COMP tokens are in their row
    loss_index: Tensor  # int64 (B, R): where the tokens with a loss are in their row
    labels: Tensor  # int64 (B, R): the token that comes next
    loss_weights: Tensor  # fp32 (B, R)
    merge_index: Tensor  # int64 (B, G, T, n, S): the tokens, S at most, that are pooled into part j of a step
    has_neighbors: bool  # does any row hold texts that may not attend to each other: several samples, or questions?
    prefix: "PackedBatch | None" = None  # runs first, under no_grad, and is then not part of this batch
    last: "PackedBatch | None" = None  # what the last layer gets (B, L), if that is less than half
    last_index: Tensor | None = None  # int64 (B, L): where that is in its row

    def flat(self, index: Tensor) -> Tensor:
        """An index into each row, int64 (B, P), as an index (B * P,) into the flattened tokens."""
        rows = torch.arange(len(self.tokens), device=self.tokens.device)[:, None]
        return (index + rows * self.tokens.shape[1]).flatten()

    @property
    def token_count(self) -> int:
        """Tokens, with padding and with the prefix."""
        return self.tokens.numel() + (self.prefix.token_count if self.prefix else 0)

    @property
    def sizes(self) -> tuple[int, ...]:
        """What its shapes depend on in addition to B, N, the method and n: C, R, G, T, S."""
        samples, steps, _, tokens = self.merge_index.shape[1:]
        return self.comp_index.shape[1], self.loss_index.shape[1], samples, steps, tokens

    def to(self, device) -> "PackedBatch":
        """The same batch on a device."""
        return PackedBatch(**{name: x.to(device) if hasattr(x, "to") else x for name, x in vars(self).items()})

    def split(self) -> list["PackedBatch"]:
        """Each row as a batch of its own; all have the same shape."""

        def row(x, i: int):
            if isinstance(x, PackedBatch):
                return PackedBatch(**{name: row(value, i) for name, value in vars(x).items()})
            if isinstance(x, PackedInfo):
                return PackedInfo(x.data[:, i : i + 1])
            return x[i : i + 1] if isinstance(x, Tensor) else x

        return [row(self, i) for i in range(len(self.tokens))]


@dataclass
class _Sample:
    """A sequence, ready to be packed."""

    tokens: Tensor  # (N,)
    positions: Tensor  # (N,)
    labels: Tensor  # (N,)
    loss_weights: Tensor  # (N,)
    info: Tensor  # (5, N)
    slots: Tensor  # (5, M)

    @classmethod
    def of(cls, x: Sequence) -> "_Sample":
        return cls(x.tokens, x.positions, x.tokens.roll(-1), x.loss_weights, _data(x.info), _data(x.slots))

    def select(self, mask: Tensor, slots: bool = True) -> "_Sample":
        """Some of its tokens, and all slots or none."""
        picked = self.tokens[mask], self.positions[mask], self.labels[mask], self.loss_weights[mask], self.info[:, mask]
        return _Sample(*picked, self.slots if slots else self.slots[:, :0])


KIND, STEP, SLOT_NUMBER, ORDER, QUESTION = range(5)  # rows of _Sample.info
PADDING = {KIND: PAD, STEP: -1, SLOT_NUMBER: -1, ORDER: 0, QUESTION: 0}
NO_MIN_SIZES = (0,) * 5


def pack_rows(
    method: Method,
    rows: list[list[Sequence]],
    pad_multiple: int = 1,
    min_sizes: tuple[int, ...] = NO_MIN_SIZES,
    prefix: bool = False,
    prune: bool = True,
) -> PackedBatch:
    """A batch whose row i packs the samples rows[i]. N is padded to a multiple of pad_multiple.

    If that is above 1, the other sizes are rounded up, too. min_sizes: the least `sizes` of the batch. prefix, prune:
    make the batches `prefix` and `last`.
    """
    samples = [[_Sample.of(x) for x in row] for row in rows]
    prefixes = [[prefix_mask(method, x) if prefix else None for x in row] for row in rows]
    lasts = [[last_layer_mask(method, x) if prune else None for x in row] for row in rows]
    first, finer = None, max(min(pad_multiple, 128), pad_multiple // 8)  # a part of a row is rounded up to `finer`
    if prefix and all(mask.any() for row in prefixes for mask in row):
        first = _pack(_select(samples, prefixes, slots=False), finer, NO_MIN_SIZES)
        prune = prune and not any((a & b).any() for pair in zip(prefixes, lasts) for a, b in zip(*pair))
        rest = [[~mask for mask in row] for row in prefixes]
        samples = _select(samples, rest)
        lasts = [[last[mask] for last, mask in zip(*pair)] for pair in zip(lasts, rest)] if prune else lasts
    batch = _pack(samples, pad_multiple, min_sizes)
    batch.prefix = first
    if prune:
        needed = [torch.cat(row) for row in lasts]
        longest = _round_up(max(int(row.sum()) for row in needed) + 1, finer)
        if 2 * longest < batch.tokens.shape[1]:
            batch.last = _pack(_select(samples, lasts), finer, min_sizes)
            batch.last_index = _index(needed, batch.tokens.shape[1] - 1, lambda count: batch.last.tokens.shape[1])
    return batch


def _select(samples: list[list[_Sample]], masks: list[list[Tensor]], slots: bool = True) -> list[list[_Sample]]:
    return [[x.select(mask, slots) for x, mask in zip(*pair)] for pair in zip(samples, masks)]


def _pack(rows: list[list[_Sample]], pad_multiple: int, min_sizes: tuple[int, ...]) -> PackedBatch:
    """The batch of whole rows, without prefix and last."""

    def join(name: str) -> list[Tensor]:
        return [torch.cat([getattr(x, name) for x in row], -1) for row in rows]

    def size(which: int, count: int, up=lambda count: _power(count, 128)) -> int:
        return max(min_sizes[which], up(count) if pad_multiple > 1 else count)

    info, loss_weights, labels = join("info"), join("loss_weights"), join("labels")
    N = _round_up(max(row.shape[1] for row in info) + 1, pad_multiple)
    comp_index = _index([row[KIND] == COMP for row in info], N - 1, lambda count: size(0, count))
    loss_index = _index([row > 0 for row in loss_weights], N - 1, lambda count: size(1, count))
    slots, merge_index = _merge_index(rows, N - 1, size)
    return PackedBatch(
        tokens=_pad(join("tokens"), N),
        positions=_pad(join("positions"), N),
        info=_pack_info(rows, N),
        slots=slots,
        comp_index=comp_index,
        loss_index=loss_index,
        labels=_pad(labels, N).gather(1, loss_index),
        loss_weights=_pad(loss_weights, N).gather(1, loss_index),
        merge_index=merge_index,
        has_neighbors=any(len(row) > 1 or int(row[0].info[QUESTION].max()) > 1 for row in rows),
    )


def _pad(rows: list[Tensor], N: int) -> Tensor:
    """Rows of unequal length as one tensor (B, N), padded with 0."""
    out = torch.zeros(len(rows), N, dtype=rows[0].dtype)
    for i, row in enumerate(rows):
        out[i, : len(row)] = row
    return out


def _pack_info(rows: list[list[_Sample]], N: int) -> PackedInfo:
    """The info of tokens (B, N). Each padding token is a document of its own, which attends to itself only."""
    data = torch.empty(6, len(rows), N, dtype=torch.int64)
    for field, value in PADDING.items():
        data[field] = value
    data[-1] = -1 - torch.arange(N)
    for i, row in enumerate(rows):
        start = 0
        for document, x in enumerate(row):
            end = start + len(x.tokens)
            data[:-1, i, start:end], data[-1, i, start:end] = x.info, document
            start = end
    return PackedInfo(data)


def _merge_index(rows: list[list[_Sample]], pad: int, size: Callable[..., int]) -> tuple[PackedInfo, Tensor]:
    """The slots (B, G * T * n) and merge_index (B, G, T, n, S) of a batch. T is 0 if nothing is merged."""
    G = size(2, max(map(len, rows)), lambda count: _power(count, 8))
    made = torch.cat([x.slots for row in rows for x in row], 1)
    if not made.numel():
        nothing = torch.zeros(6, len(rows), 0, dtype=torch.int64)
        return PackedInfo(nothing), nothing.new_zeros(len(rows), G, 0, 0, 0)
    T = size(3, int(made[STEP].max()) + 1, lambda count: _round_up(count, 8))
    n = 1 + max(int(x[SLOT_NUMBER].max()) for x in (made, *(x.info for row in rows for x in row)))
    data = torch.empty(6, len(rows), G, T, n, dtype=torch.int64)
    for field, value in (PADDING | {ORDER: LATEST}).items():
        data[field] = value
    data[-1] = torch.arange(G)[:, None, None]
    found = []  # of each token that is pooled: row, sample, step, part, number within the part, index in the row
    for i, row in enumerate(rows):
        start = 0
        for g, x in enumerate(row):
            data[:-1, i, g, x.slots[STEP], x.slots[SLOT_NUMBER]] = x.slots
            index = (x.info[SLOT_NUMBER] >= 0).nonzero()[:, 0]
            part = x.info[STEP, index] * n + x.info[SLOT_NUMBER, index]
            part, order = part.sort(stable=True)
            index = index[order]
            counts = part.unique_consecutive(return_counts=True)[1]
            number = torch.arange(len(index)) - (counts.cumsum(0) - counts).repeat_interleave(counts)
            row_and_sample = torch.full_like(index, i), torch.full_like(index, g)
            found.append([*row_and_sample, part // n, part % n, number, index + start])
            start += len(x.tokens)
    *place, number, index = (torch.cat(field) for field in zip(*found))
    S = size(4, int(number.max()) + 1, lambda count: _power(count, 1))
    merge_index = torch.full((len(rows), G, T, n, S), pad)
    merge_index[(*place, number)] = index
    return PackedInfo(data.flatten(2)), merge_index


def _index(masks: list[Tensor], pad: int, size: Callable[[int], int]) -> Tensor:
    """Where each mask (N,) is True: int64 (B, size(the largest count)), filled up with `pad`."""
    found = [mask.nonzero()[:, 0] for mask in masks]
    out = torch.full((len(masks), size(max(map(len, found)))), pad)
    for row, index in zip(out, found):
        row[: len(index)] = index
    return out


def fill_rows(lengths: list[int], max_tokens: int, pad_multiple: int = 128) -> list[list[int]]:
    """Indices of sequences in rows without padding, each of fewer than max_tokens tokens (or one longer sequence).

    It makes as few rows as possible, and about equally full ones, since all are padded to the longest, rounded up to
    pad_multiple. First fit, with the longest sequences first.
    """
    total, longest = sum(lengths), max(lengths)
    capacity = _round_up(max(-(-total // max(1, -(-total // max_tokens))), longest) + 1, pad_multiple)
    while True:
        rows, space = [], []
        for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
            row = next((i for i, left in enumerate(space) if left >= lengths[index]), None)
            if row is None:
                row = len(rows)
                rows.append([])
                space.append(min(capacity, max(max_tokens, longest + 1)) - 1)  # a row ends in padding
            rows[row].append(index)
            space[row] -= lengths[index]
        if capacity >= max_tokens or len(rows) <= -(-total // max_tokens):
            return rows
        capacity += pad_multiple


def _round_up(count: int, multiple: int) -> int:
    return -(-count // multiple) * multiple


def _power(count: int, least: int) -> int:
    """The count rounded up to a power of two, `least` at least; 0 stays 0."""
    return max(least, 1 << (count - 1).bit_length()) if count else 0
