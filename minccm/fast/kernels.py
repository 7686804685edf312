"""Triton kernels for inference on a GPU: attention of few queries over a short buffer, and products with one token.

Decoding reads every weight, key and value once and does little else, so its speed is that of memory. In attention, each
program takes the queries of one key/value head and one part of the buffer; a second kernel combines the parts. In a
product, each program reads one row of W at once, and also computes the norm before it, and SiLU or the sum after it.
docs/performance.md compares them with compiled code.

A kernel can prefetch weights before the kernel before it finishes. From Hopper on, a kernel can let the next one start
(gdc_launch_dependents), which waits where it needs the results (gdc_wait). Every kernel that is started in this way
waits, so after the wait all earlier ones have finished.
"""

import functools

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait


@triton.jit
def _attend(
    queries, keys, values, bias, out, lse, n_keys, n_tokens, n_rows, n_heads, scale,
    PART: tl.constexpr, PARTS: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, WIDTH: tl.constexpr,
    EARLY: tl.constexpr,
):  # fmt: skip
    """One program: BLOCK_M queries of a key/value head over PART of its keys, by online softmax."""
    if EARLY:
        gdc_launch_dependents()
        gdc_wait()
    head, index, block = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.program_id(2)
    rows, width = block * BLOCK_M + tl.arange(0, BLOCK_M), tl.arange(0, WIDTH)
    exists = rows < n_rows
    q = tl.load(queries + (head * n_rows + rows[:, None]) * WIDTH + width[None, :], mask=exists[:, None], other=0.0)
    bias += (head // n_heads * n_tokens + rows[:, None] % n_tokens) * n_keys
    highest = tl.full([BLOCK_M], -1e30, tl.float32)  # finite, so a part without any visible key is not NaN
    total = tl.zeros([BLOCK_M], tl.float32)
    sums = tl.zeros([BLOCK_M, WIDTH], tl.float32)
    for start in range(0, PART, BLOCK_N):
        places = index * PART + start + tl.arange(0, BLOCK_N)
        inside = places < n_keys
        address = (head * n_keys + places[:, None]) * WIDTH + width[None, :]
        k = tl.load(keys + address, mask=inside[:, None], other=0.0)
        v = tl.load(values + address, mask=inside[:, None], other=0.0)
        hidden = tl.load(bias + places[None, :], mask=exists[:, None] & inside[None, :], other=float("-inf"))
        scores = tl.dot(q, tl.trans(k)) * scale + hidden.to(tl.float32)  # (BLOCK_M, BLOCK_N)
        higher = tl.maximum(highest, tl.max(scores, 1))
        weights = tl.exp(scores - higher[:, None])
        shrink = tl.exp(highest - higher)
        total = total * shrink + tl.sum(weights, 1)
        sums = sums * shrink[:, None] + tl.dot(weights.to(v.dtype), v)
        highest = higher
    address = (head * PARTS + index) * n_rows + rows
    total = tl.maximum(total, 1e-30)
    tl.store(out + address[:, None] * WIDTH + width[None, :], sums / total[:, None], mask=exists[:, None])
    tl.store(lse + address, highest + tl.log(total), mask=exists)


@triton.jit
def _combine(
    out, lse, combined, n_rows, PARTS: tl.constexpr, BLOCK: tl.constexpr, WIDTH: tl.constexpr, EARLY: tl.constexpr
):
    """One program: the result of one query from those of the parts. BLOCK: PARTS rounded up to a power of two."""
    if EARLY:
        gdc_launch_dependents()
        gdc_wait()
    head, row = tl.program_id(0).to(tl.int64), tl.program_id(1)
    parts, width = tl.arange(0, BLOCK), tl.arange(0, WIDTH)
    address = (head * PARTS + parts) * n_rows + row
    share = tl.load(lse + address, mask=parts < PARTS, other=-1e30)
    share = tl.exp(share - tl.max(share, 0))
    share = tl.where(parts < PARTS, share, 0.0)
    x = tl.load(out + address[:, None] * WIDTH + width[None, :], mask=(parts < PARTS)[:, None], other=0.0)
    y = tl.sum(x * (share / tl.sum(share, 0))[:, None], 0)
    tl.store(combined + (head * n_rows + row) * WIDTH + width, y)


@functools.cache
def _launch_options() -> dict:
    """Options of a launch: before the previous kernel has finished, if the GPU can do that."""
    hopper = torch.version.hip is None and torch.cuda.get_device_capability() >= (9, 0)
    return {"EARLY": True, "launch_pdl": True} if hopper else {"EARLY": False}


# custom ops: the compiler knows their inputs and outputs only, so it compiles no shape again
@torch.library.custom_op("minccm::attend", mutates_args=())
def attend(queries: Tensor, keys: Tensor, values: Tensor, bias: Tensor) -> Tensor:
    """Attention of queries (B, heads, N, head_dim) over keys and values (B, kv_heads, K, head_dim).

    Returns (B, heads, N, head_dim). bias (B, N, K) is added to the scores; -inf hides a key. heads is a multiple of
    kv_heads; head_dim is a power of two, at least 16.
    """
    batch, n_heads, n_tokens, width = queries.shape
    kv_heads, n_keys = keys.shape[1:3]
    rows = n_heads // kv_heads * n_tokens  # of one key/value head
    block_m = max(16, min(64, 1 << (rows - 1).bit_length()))
    blocks = -(-rows // block_m)
    parts = max(1, min(264 // (batch * kv_heads * blocks), -(-n_keys // 64)))  # up to two per multiprocessor
    part = -(-n_keys // parts // 64) * 64
    parts = -(-n_keys // part)
    block_n, stages = (part, 1) if part <= 128 else (64, 2)  # a short part is loaded at once, without a pipeline
    combined = torch.empty(queries.shape, dtype=queries.dtype, device=queries.device)
    shape = batch, kv_heads, parts, rows
    out = combined if parts == 1 else torch.empty(*shape, width, dtype=torch.float32, device=queries.device)
    lse = torch.empty(shape, dtype=torch.float32, device=queries.device)
    _attend[(batch * kv_heads, parts, blocks)](
        queries.contiguous(), keys, values, bias, out, lse, n_keys, n_tokens, rows, kv_heads, width**-0.5,
        PART=part, PARTS=parts, BLOCK_M=block_m, BLOCK_N=block_n, WIDTH=width,
        num_warps=4, num_stages=stages, **_launch_options(),
    )  # fmt: skip
    if parts > 1:
        block = 1 << (parts - 1).bit_length()
        _combine[(batch * kv_heads, rows)](out, lse, combined, rows, parts, block, width, **_launch_options())
    return combined


@attend.register_fake
def _(queries, keys, values, bias):
    return torch.empty(queries.shape, dtype=queries.dtype, device=queries.device)


@triton.jit
def _product(
    x, weight, norm, add, y, n_rows, eps,
    WIDTH: tl.constexpr, BLOCK: tl.constexpr, NORM: tl.constexpr, GATED: tl.constexpr, ADD: tl.constexpr,
    EARLY: tl.constexpr,
):  # fmt: skip
    """One program: one row of W (two if GATED) times x. BLOCK: WIDTH rounded up to a power of two."""
    row, column = tl.program_id(0), tl.arange(0, BLOCK)
    inside = column < WIDTH
    # W is read before the wait, because no kernel writes it
    w = tl.load(weight + row.to(tl.int64) * WIDTH + column, mask=inside, other=0.0)
    if GATED:
        w_up = tl.load(weight + (n_rows + row).to(tl.int64) * WIDTH + column, mask=inside, other=0.0)
    if EARLY:
        gdc_launch_dependents()
        gdc_wait()
    a = tl.load(x + column, mask=inside, other=0.0).to(tl.float32)
    scale = 1.0
    if NORM:
        scale = tl.rsqrt(tl.sum(a * a, 0) / WIDTH + eps)
        a *= tl.load(norm + column, mask=inside, other=0.0).to(tl.float32)
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
    """W x for one token: x (..., in), weight (out, in) -> (..., out), summed in fp32.

    norm (in,) and eps: RMSNorm of x before the product. gated: weight holds the rows of gate_proj, then those of
    up_proj, and the result is silu(gate x) * (up x). add (..., out): added to the result.
    """
    rows, width = weight.shape[0] // (1 + gated), weight.shape[1]
    y = torch.empty(*x.shape[:-1], rows, dtype=x.dtype, device=x.device)
    block = triton.next_power_of_2(width)
    _product[(rows,)](
        x.contiguous(), weight, norm, add, y, rows, eps,
        WIDTH=width, BLOCK=block, NORM=norm is not None, GATED=gated, ADD=add is not None,
        num_warps=max(1, min(32, block // 1024)), **_launch_options(),
    )  # fmt: skip
    return y


@product.register_fake
def _(x, weight, norm=None, eps=0.0, add=None, gated=False):
    return x.new_empty(*x.shape[:-1], weight.shape[0] // (1 + gated))
