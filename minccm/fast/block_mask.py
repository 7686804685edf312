"""The mask of a packed row for FlexAttention, which skips blocks of 128 x 128 where no query attends to any key."""

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask

from minccm.fast.packing import PackedBatch, PackedInfo, packed_attention_mask
from minccm.methods import Method

BLOCK = 128
CHUNK = 1024  # blocks whose mask is computed at once; this bounds the memory it needs

Blocks = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]  # as attended_blocks returns them


def batch_keys(method: Method, batch: PackedBatch) -> PackedInfo:
    """What the queries of a batch can attend to, (B, K): its tokens, then the prefix, then the memory slots."""
    parts = [batch.info, batch.prefix and batch.prefix.info, batch.slots if method.merge_rate else None]
    return PackedInfo.cat([part for part in parts if part is not None])


def attended_blocks(method: Method, queries: PackedInfo, keys: PackedInfo) -> Blocks:
    """Which blocks of keys each block of queries attends to: in part, and as a whole, as FlexAttention wants it.

    For each of the two kinds: how many blocks, int32 (B, 1, query blocks), and their numbers, int32 (B, 1, query
    blocks, key blocks), with the others behind. Then the mask itself, one bit a pair: uint8 (B, N / 8, K), both filled
    up to whole blocks; bit i of [b, r, k] says whether query 8 r + i attends to key k. The attention rule is evaluated
    only in blocks that can have a True by their documents and orders.
    """
    N, K = len(queries), len(keys)

    def blocks(x: PackedInfo) -> Tensor:  # (6, B, N) -> (6, B, N / BLOCK, BLOCK), the last one filled up by copies
        copies = x.data[..., -1:].expand(-1, -1, -len(x) % BLOCK)
        return torch.cat([x.data, copies], -1).unflatten(-1, (-1, BLOCK))

    q, k = blocks(queries), blocks(keys)
    q_low, q_high = (bound[..., :, None] for bound in q.aminmax(dim=-1))  # (6, B, query blocks, 1)
    k_low, k_high = (bound[..., None, :] for bound in k.aminmax(dim=-1))  # (6, B, 1, key blocks)
    q_low, q_high, k_low, k_high = map(PackedInfo, (q_low, q_high, k_low, k_high))
    possible = (k_low.document <= q_high.document) & (k_high.document >= q_low.document)
    possible &= k_low.info.order <= q_high.info.order  # bool (B, query blocks, key blocks)
    some, whole = torch.zeros_like(possible), torch.zeros_like(possible)
    bits = torch.zeros(*q.shape[1:3], BLOCK // 8, k.shape[2], BLOCK, dtype=torch.uint8, device=q.device)
    powers = 2 ** torch.arange(8, dtype=torch.uint8, device=q.device)[:, None]
    for chunk in possible.nonzero().split(CHUNK):
        b, i, j = chunk.unbind(1)
        mask = packed_attention_mask(method, PackedInfo(q[:, b, i]), PackedInfo(k[:, b, j]))  # (CHUNK, BLOCK, BLOCK)
        some[b, i, j], whole[b, i, j] = mask.flatten(1).any(1), mask.flatten(1).all(1)
        bits[b, i, :, j] = (mask.unflatten(1, (-1, 8)) * powers).sum(2, dtype=torch.uint8)  # (CHUNK, BLOCK / 8, BLOCK)
    if N % BLOCK or K % BLOCK:  # at the edge a kernel needs the mask
        whole[:] = False
    found = []
    for which in (some & ~whole, whole):
        which = which[:, None].int()
        found += [which.sum(-1, dtype=torch.int32), which.argsort(dim=-1, descending=True, stable=True).int()]
    return *found, bits.flatten(3).flatten(1, 2)


def block_mask(queries: PackedInfo, keys: PackedInfo, blocks: Blocks) -> BlockMask:
    """packed_attention_mask for FlexAttention, from attended_blocks of these queries and keys.

    The kernel looks up each bit. To evaluate the rule for each pair, in each layer and head, would take longer.
    """
    *found, bits = blocks

    def mask_mod(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return bits[b, q >> 3, k] & (1 << (q & 7)) != 0

    return BlockMask.from_kv_blocks(*found, BLOCK, mask_mod, (len(queries), len(keys)))


def batch_blocks(method: Method, batch: PackedBatch) -> tuple[Blocks | None, ...]:
    """attended_blocks of a batch, of its prefix, and of its last-layer batch; None for a part that it does not have.

    On a GPU this waits for earlier work, so a step calls it for all its batches first.
    """
    parts = batch, batch.prefix, batch.last
    return tuple(part and attended_blocks(method, part.info, batch_keys(method, part)) for part in parts)
