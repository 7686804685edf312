"""Joined weights: q, k, v (and gate, up) by one product instead of three (and two); A and B of LoRA likewise.

Parameters keep their names and become slices of the joined tensors, so both forms always hold the same numbers. The
joined tensors are plain attributes of a block's modules: self_attn.qkv, mlp.gate_up, self_attn.qkv_lora and o_lora.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from minccm.fast.rows import LoRARows
from minccm.lora import ConditionalLoRA

ALL_TOKENS = True  # as lora_index: LoRA acts on every token


@torch.no_grad()
def join_weights(model) -> None:
    """Joins W of q, k, v, and of gate, up, in every block of a frozen model.

    Call it when the weights are on their final device. A second call leaves joined weights where they are.
    """
    for block in model.layers:
        attention, mlp = block.self_attn, block.mlp
        attention.qkv = _join_rows([attention.q_proj, attention.k_proj, attention.v_proj], joined(attention, "qkv"))
        mlp.gate_up = _join_rows([mlp.gate_proj, mlp.up_proj], joined(mlp, "gate_up"))


def _join_rows(parts: list[torch.nn.Linear], present: Tensor | None) -> Tensor:
    """A tensor of the parts' weights, one after another. The weights become slices of it."""
    if present is not None and present.data_ptr() == parts[0].weight.data_ptr():
        return present
    whole = torch.cat([part.weight for part in parts])
    for part, weight in zip(parts, whole.split([len(part.weight) for part in parts])):
        part.weight.data = weight
    return whole


def joined(module, name: str):
    """The joined tensors of that name, or None if they are not joined."""
    return getattr(module, name, None)


@torch.no_grad()
def join_lora(model) -> None:
    """Joins A and B of q, k, v in every block, and rounds A and B of q, k, v, o to the dtype of the weights.

    For inference, which reads few COMP tokens at a time. A second call leaves them where they are, since a CUDA graph
    may read them there; call it again after the adapter has been replaced.
    """
    for block in model.layers:
        attention = block.self_attn
        parts = [attention.q_proj, attention.k_proj, attention.v_proj]
        attention.qkv_lora = _join_lora(parts, joined(attention, "qkv_lora"))
        attention.o_lora = _join_lora([attention.o_proj], joined(attention, "o_lora"))


def _join_lora(parts: list[ConditionalLoRA], present: tuple[Tensor, Tensor] | None) -> tuple[Tensor, Tensor] | None:
    """A (parts * r, in) and block-diagonal B (out, parts * r). A and B of the parts become slices of them."""
    if parts[0].lora_A is None:
        return None
    if present is not None and present[0].data_ptr() == parts[0].lora_A.data_ptr():
        return present
    A = torch.cat([part.lora_A.data for part in parts]).to(parts[0].weight.dtype)
    B = torch.block_diag(*[part.lora_B.data for part in parts]).to(A.dtype)
    r = len(A) // len(parts)
    for i, (part, rows) in enumerate(zip(parts, B.split([len(part.lora_B) for part in parts]))):
        columns = slice(i * r, (i + 1) * r)
        part.lora_A.data, part.lora_B.data = A[columns], rows[:, columns]
    return A, B


def project(
    x: Tensor,
    lora_index: Tensor | bool | None,
    parts: list[ConditionalLoRA],
    weight: Tensor | None,
    lora: tuple[Tensor, Tensor] | None = None,
) -> tuple[Tensor, ...]:
    """The projections of one x (B, N, in), each (B, N, out).

    lora_index: int64 (C,), rows of the flattened tokens that LoRA acts on, as in rows.SelectRows; ALL_TOKENS; or None.
    weight, lora: the joined W, and the joined A and B (without a gradient), or None if they are not joined.
    """
    if parts[0].lora_A is None:
        lora_index = None
    if weight is None or lora_index is ALL_TOKENS:
        return tuple(_project_one(x, lora_index, part) for part in parts)
    return _project_joined(x, lora_index, parts, weight, lora)


def _project_one(x: Tensor, lora_index: Tensor | bool | None, part: ConditionalLoRA) -> Tensor:
    if lora_index is ALL_TOKENS:
        x32 = F.dropout(x.to(part.lora_A.dtype), part.dropout, part.training)
        update = F.linear(F.linear(x32, part.lora_A), part.lora_B) * part.scale
        return F.linear(x, part.weight) + update.to(x.dtype)
    return _project_joined(x, lora_index, [part], part.weight, None)[0]


def _project_joined(x: Tensor, lora_index: Tensor | None, parts: list[ConditionalLoRA], weight: Tensor, lora):
    first, sizes = parts[0], [len(part.weight) for part in parts]
    if lora_index is None:
        return F.linear(x, weight).split(sizes, -1)
    dropout = None
    if first.training and first.dropout:
        ones = torch.ones(len(lora_index), x.shape[-1], dtype=first.lora_A.dtype, device=x.device)
        dropout = F.dropout(ones, first.dropout)
    if lora is None:
        A, B = (torch.cat([getattr(part, name) for part in parts]) for name in ("lora_A", "lora_B"))
        lora_sizes = sizes
    else:
        (A, B), lora_sizes = lora, [sum(sizes)]
    y = LoRARows.apply(x.flatten(0, 1), weight, lora_index, dropout, first.scale, lora_sizes, A, B)
    return y.view(*x.shape[:2], y.shape[-1]).split(sizes, -1)


def feed_forward(mlp, x: Tensor) -> Tensor:
    """SwiGLU of x (B, N, dim), with joined gate and up where no gradient is taken: joined gradients are slower."""
    gate_up = joined(mlp, "gate_up")
    if gate_up is None or torch.is_grad_enabled():
        return mlp(x)
    gate, up = F.linear(x, gate_up).chunk(2, -1)
    return mlp.down_proj(F.silu(gate) * up)
