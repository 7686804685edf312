"""Online on a GPU, in Triton: attention of a few queries over a short buffer with holes, and products of one token.

A decoding step reads every weight, key and value once and does little else, so all that counts is that reading never
waits. Attention: each program takes the queries of one key/value head and one part of the buffer, and the parts are put
together afterwards. A product: each program reads one row of W, all at once, and does along with it what stands before
and behind: the norm, silu, the sum. How much faster this is than what the compiler makes: docs/performance.md.

Nor need a kernel wait for the end of the one before to read what that one does not write, which is the weights. From
Hopper on a kernel may let the next one start (gdc_launch_dependents), which waits where it has to (gdc_wait). Each that
is started so does wait, so that by then all of those before it have ended.
"""

import functools

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait


@triton.jit
def _attend(
    queries, keys, values, bias, out, lse, n_columns, n_tokens, n_rows, n_heads, scale,
    PART: tl.constexpr, PARTS: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, WIDTH: tl.constexpr,
    EARLY: tl.constexpr,
):  # fmt: skip
    """One program: BLOCK_M queries of a key/value head over PART of its columns, by the softmax that goes along."""
    if EARLY:
        gdc_launch_dependents()
        gdc_wait()
    head, index, block = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.program_id(2)
    rows, width = block * BLOCK_M + tl.arange(0, BLOCK_M), tl.arange(0, WIDTH)
    there = rows < n_rows
    q = tl.load(queries + (head * n_rows + rows[:, None]) * WIDTH + width[None, :], mask=there[:, None], other=0.0)
    bias += (head // n_heads * n_tokens + rows[:, None] % n_tokens) * n_columns
    highest = tl.full([BLOCK_M], -1e30, tl.float32)  # finite, so that a part nobody sees is no NaN
    total = tl.zeros([BLOCK_M], tl.float32)
    sums = tl.zeros([BLOCK_M, WIDTH], tl.float32)
    for start in range(0, PART, BLOCK_N):
        columns = index * PART + start + tl.arange(0, BLOCK_N)
        within = columns < n_columns
        place = (head * n_columns + columns[:, None]) * WIDTH + width[None, :]
        k = tl.load(keys + place, mask=within[:, None], other=0.0)
        v = tl.load(values + place, mask=within[:, None], other=0.0)
        hidden = tl.load(bias + columns[None, :], mask=there[:, None] & within[None, :], other=float("-inf"))
        scores = tl.dot(q, tl.trans(k)) * scale + hidden.to(tl.float32)  # (BLOCK_M, BLOCK_N)
        higher = tl.maximum(highest, tl.max(scores, 1))
        weights = tl.exp(scores - higher[:, None])
        shrink = tl.exp(highest - higher)
        total = total * shrink + tl.sum(weights, 1)
        sums = sums * shrink[:, None] + tl.dot(weights.to(v.dtype), v)
        highest = higher
    place = (head * PARTS + index) * n_rows + rows
    total = tl.maximum(total, 1e-30)
    tl.store(out + place[:, None] * WIDTH + width[None, :], sums / total[:, None], mask=there[:, None])
    tl.store(lse + place, highest + tl.log(total), mask=there)


@triton.jit
def _join(
    out, lse, joined, n_rows, PARTS: tl.constexpr, AT_LEAST: tl.constexpr, WIDTH: tl.constexpr, EARLY: tl.constexpr
):
    """One program: the answer of one query from those of the parts. AT_LEAST: PARTS as a power of two."""
    if EARLY:
        gdc_launch_dependents()
        gdc_wait()
    head, row = tl.program_id(0).to(tl.int64), tl.program_id(1)
    parts, width = tl.arange(0, AT_LEAST), tl.arange(0, WIDTH)
    place = (head * PARTS + parts) * n_rows + row
    share = tl.load(lse + place, mask=parts < PARTS, other=-1e30)
    share = tl.exp(share - tl.max(share, 0))
    share = tl.where(parts < PARTS, share, 0.0)
    x = tl.load(out + place[:, None] * WIDTH + width[None, :], mask=(parts < PARTS)[:, None], other=0.0)
    y = tl.sum(x * (share / tl.sum(share, 0))[:, None], 0)
    tl.store(joined + (head * n_rows + row) * WIDTH + width, y)


@functools.cache
def _early() -> dict:
    """How a kernel is launched: before the one before it has ended, where the GPU can."""
    hopper = torch.version.hip is None and torch.cuda.get_device_capability() >= (9, 0)
    return {"EARLY": True, "launch_pdl": True} if hopper else {"EARLY": False}


# known to the compiler by what goes in and out alone, so that no shape is compiled anew
@torch.library.custom_op("minccm::attend", mutates_args=())
def attend(queries: Tensor, keys: Tensor, values: Tensor, bias: Tensor) -> Tensor:
    """Attention (B, H, T, head_dim) of queries (B, H, T, head_dim) over keys and values (B, heads, C, head_dim).

    bias (B, T, C): what is added to a score; -inf hides. H is a multiple of heads; head_dim is a power of two from 16.
    """
    batch, n_queries, tokens, width = queries.shape
    heads, columns = keys.shape[1:3]
    rows = n_queries // heads * tokens  # of one key/value head
    block_m = max(16, min(64, 1 << (rows - 1).bit_length()))
    blocks = -(-rows // block_m)
    parts = max(1, min(264 // (batch * heads * blocks), -(-columns // 64)))  # two for each multiprocessor, if they last
    part = -(-columns // parts // 64) * 64
    parts = -(-columns // part)
    at_once, stages = (part, 1) if part <= 128 else (64, 2)  # a short part by one load, with nothing to wait for after
    joined = torch.empty(queries.shape, dtype=queries.dtype, device=queries.device)
    shape = batch, heads, parts, rows
    out = joined if parts == 1 else torch.empty(*shape, width, dtype=torch.float32, device=queries.device)
    lse = torch.empty(shape, dtype=torch.float32, device=queries.device)
    _attend[(batch * heads, parts, blocks)](
        queries.contiguous(), keys, values, bias, out, lse, columns, tokens, rows, heads, width**-0.5,
        PART=part, PARTS=parts, BLOCK_M=block_m, BLOCK_N=at_once, WIDTH=width,
        num_warps=4, num_stages=stages, **_early(),
    )  # fmt: skip
    if parts > 1:
        _join[(batch * heads, rows)](out, lse, joined, rows, parts, 1 << (parts - 1).bit_length(), width, **_early())
    return joined


@attend.register_fake
def _(queries, keys, values, bias):
    return torch.empty(queries.shape, dtype=queries.dtype, device=queries.device)


@triton.jit
def _product(
    x, weight, norm, add, y, n_rows, eps,
    WIDTH: tl.constexpr, BLOCK: tl.constexpr, NORM: tl.constexpr, GATED: tl.constexpr, ADD: tl.constexpr,
    EARLY: tl.constexpr,
):  # fmt: skip
    """One program: one row of W, or if GATED two, times x. BLOCK: WIDTH as a power of two."""
    row, at = tl.program_id(0), tl.arange(0, BLOCK)
    within = at < WIDTH
    # W is read before the wait, as no kernel writes it
    w = tl.load(weight + row.to(tl.int64) * WIDTH + at, mask=within, other=0.0)
    if GATED:
        w_up = tl.load(weight + (n_rows + row).to(tl.int64) * WIDTH + at, mask=within, other=0.0)
    if EARLY:
        gdc_launch_dependents()
        gdc_wait()
    a = tl.load(x + at, mask=within, other=0.0).to(tl.float32)
    scale = 1.0
    if NORM:
        scale = tl.rsqrt(tl.sum(a * a, 0) / WIDTH + eps)
        a *= tl.load(norm + at, mask=within, other=0.0).to(tl.float32)
    out = tl.sum(w.to(tl.float32) * a, 0) * scale
    if GATED:
        out *= tl.sigmoid(out) * tl.sum(w_up.to(tl.float32) * a, 0) * scale
    if ADD:
        out += tl.load(add + row).to(tl.float32)
    tl.store(y + row, out)


@torch.library.custom_op("minccm::product", mutates_args=())
def product(
    x: Tensor,
    weight: Tensor,
    norm: Tensor | None = None,
    eps: float = 0.0,
    add: Tensor | None = None,
    gated: bool = False,
) -> Tensor:
    """W x for one token, x (..., in) of it alone and weight (out, in) -> (..., out), summed in fp32.

    norm (in,), eps: RMSNorm is done to x before. gated: the rows of weight are those of gate_proj and then as many of
    up_proj, and the result is silu(gate x) * (up x). add (..., out): is added at last.
    """
    rows, width = weight.shape[0] // (1 + gated), weight.shape[1]
    y = torch.empty(*x.shape[:-1], rows, dtype=x.dtype, device=x.device)
    block = triton.next_power_of_2(width)
    _product[(rows,)](
        x.contiguous(), weight, norm, add, y, rows, eps,
        WIDTH=width, BLOCK=block, NORM=norm is not None, GATED=gated, ADD=add is not None,
        num_warps=max(1, min(32, block // 1024)), **_early(),
    )  # fmt: skip
    return y


@product.register_fake
def _(x, weight, norm=None, eps=0.0, add=None, gated=False):
    return x.new_empty(*x.shape[:-1], weight.shape[0] // (1 + gated))
