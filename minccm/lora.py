"""Conditional LoRA (paper: table 21): a low-rank update that acts on COMP tokens and on nothing else.

    y = W x + m * (alpha / r) * B A x,    m = 1 on COMP tokens and 0 on text

With any adapter the base model reads and writes text exactly as before; what trains is how COMP tokens listen (q, k),
what they keep (v) and how they mix it (o). Instead of multiplying by m, the COMP rows are gathered, sent through two
small products, and added back (rows.py): text costs nothing.
"""

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from minccm.rows import OnRows

ALL = True  # as `gate`: every token is adapted, which is plain LoRA (the paper's step 1; the compressive baseline)


def lora_gate(comp: Tensor | None, conditional: bool, adapted: bool) -> Tensor | bool | None:
    """What LoRA acts on: the rows `comp` of COMP tokens, ALL tokens if it is plain, none if the adapter is left out."""
    return None if not adapted else comp if conditional else ALL


class ConditionalLinear(nn.Linear):
    """A frozen projection, to which `add_lora` gives trainable fp32 matrices A (r, in) and B (out, r)."""

    def __init__(self, in_features: int, out_features: int):
        super().__init__(in_features, out_features, bias=False)
        self.lora_A = self.lora_B = self.joint = None  # joint: see join_lora

    def add_lora(self, r: int, alpha: float, dropout: float) -> None:
        """Adds A and B of rank r, scaled by alpha / r; dropout is of their input, in training."""
        device = self.weight.device
        a = nn.init.kaiming_uniform_(torch.empty(r, self.in_features), a=5**0.5)  # the same draw on every device
        self.lora_A = nn.Parameter(a.to(device))
        self.lora_B = nn.Parameter(torch.zeros(self.out_features, r, device=device))  # so training starts at the base
        self.scale, self.dropout, self.joint = alpha / r, dropout, None

    @torch.no_grad()
    def widen_lora(self, r: int) -> None:
        """More rows of A and columns of B, up to r of them; these are zero, so what the adapter does stays the same."""
        old = self.lora_A.shape[0]
        if r > old:
            A, B = self.lora_A, self.lora_B
            self.add_lora(r, self.scale * r, self.dropout)
            self.lora_A[:old], self.lora_B[:, :old] = A, B

    def forward(self, x: Tensor, gate: Tensor | bool | None = None) -> Tensor:
        """x (B, N, in) -> (B, N, out).

        gate: int64 (C,), the rows of the flattened (B*N) tokens that LoRA acts on; ALL of them; or None, none of them.
        """
        if gate is ALL and self.lora_A is not None:
            x32 = F.dropout(x.to(self.lora_A.dtype), self.dropout, self.training)
            update = F.linear(F.linear(x32, self.lora_A), self.lora_B) * self.scale
            return F.linear(x, self.weight) + update.to(x.dtype)
        return project(x, gate, [self], self.weight)[0]

    @torch.no_grad()
    def merge_lora(self) -> None:
        """W <- W + (alpha / r) B A: plain LoRA becomes part of the base (the paper's step 1)."""
        self.weight.copy_(self.weight + self.scale * self.lora_B @ self.lora_A)  # added in fp32, rounded once
        self.lora_A = self.lora_B = self.joint = None


def join_lora(projections: list[ConditionalLinear]) -> None:
    """Keeps A and B of the projections of one x as one A (parts * r, in), and one B (out, parts * r), block by block.

    For inference: fewer small products, in the dtype of the weights. The parameters become parts of these, and are
    rounded to that dtype with them. Where they are so already they stay, for a CUDA graph may read them there.
    """
    first = projections[0]
    if first.lora_A is not None and not (first.joint and first.joint[0].data_ptr() == first.lora_A.data_ptr()):
        a = torch.cat([p.lora_A.data for p in projections]).to(first.weight.dtype)
        b = torch.block_diag(*[p.lora_B.data for p in projections]).to(a.dtype)
        first.joint = a, b
        r = len(a) // len(projections)
        for i, (projection, rows) in enumerate(zip(projections, b.split([len(p.lora_B) for p in projections]))):
            at = slice(i * r, (i + 1) * r)
            projection.lora_A.data, projection.lora_B.data = a[at], rows[:, at]


def project(
    x: Tensor, gate: Tensor | bool | None, projections: list[ConditionalLinear], joint: Tensor | None
) -> tuple[Tensor, ...]:
    """The projections of one x (B, N, in), each (B, N, out).

    joint: their weights one behind the other, for one product instead of several; None if they are not kept so.
    """
    if joint is None or (gate is ALL and projections[0].lora_A is not None):
        return tuple(projection(x, gate) for projection in projections)
    first, sizes = projections[0], [projection.weight.shape[0] for projection in projections]
    if gate is None or first.lora_A is None:
        return F.linear(x, joint).split(sizes, -1)
    keep = None
    if first.training and first.dropout:
        keep = F.dropout(torch.ones(len(gate), x.shape[-1], dtype=first.lora_A.dtype, device=x.device), first.dropout)
    if first.joint and len(first.joint[1]) == sum(sizes) and not torch.is_grad_enabled():
        (a, b), parts = first.joint, [sum(sizes)]
    else:
        a, b = (torch.cat([getattr(p, name) for p in projections]) for name in ("lora_A", "lora_B"))
        parts = sizes
    y = OnRows.apply(x.flatten(0, 1), joint, gate, keep, first.scale, parts, a, b)
    return y.view(*x.shape[:2], y.shape[-1]).split(sizes, -1)
