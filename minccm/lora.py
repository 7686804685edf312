"""Conditional LoRA (paper: section 3.2, table 21): a low-rank update that only COMP tokens receive.

    y = W x + m (alpha / r) B A x,    m = 1 for COMP tokens, 0 for text

W is frozen, so the model reads and writes text exactly as the base model does.
"""

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor


class ConditionalLoRA(nn.Linear):
    """A frozen linear layer with trainable fp32 matrices A (r, in) and B (out, r), once add_lora has been called."""

    def __init__(self, in_features: int, out_features: int):
        super().__init__(in_features, out_features, bias=False)
        self.lora_A = self.lora_B = None

    def add_lora(self, r: int, alpha: float, dropout: float = 0.0) -> None:
        """Adds A and B of rank r. dropout: of their input, in training."""
        device = self.weight.device
        A = nn.init.kaiming_uniform_(torch.empty(r, self.in_features), a=5**0.5)  # the same draw on every device
        self.lora_A = nn.Parameter(A.to(device))
        self.lora_B = nn.Parameter(torch.zeros(self.out_features, r, device=device))  # zero: starts at the base model
        self.scale, self.dropout = alpha / r, dropout

    def forward(self, x: Tensor, lora_mask: Tensor | None = None) -> Tensor:
        """x (B, N, in) -> (B, N, out). lora_mask: bool (B, N), m of the formula; None if it is 0 everywhere."""
        y = F.linear(x, self.weight)
        if lora_mask is None or self.lora_A is None:
            return y
        masked = F.dropout(x[lora_mask].to(self.lora_A.dtype), self.dropout, self.training)  # (C, in): m = 1
        update = self.scale * masked @ self.lora_A.T @ self.lora_B.T  # (C, out)
        return y.index_put((lora_mask,), update.to(y.dtype), accumulate=True)

    @torch.no_grad()
    def merge_lora(self) -> None:
        """W <- W + (alpha / r) B A: plain LoRA becomes part of the base model (the paper's step 1)."""
        self.weight.copy_(self.weight + self.scale * self.lora_B @ self.lora_A)  # added in fp32, rounded once
        self.lora_A = self.lora_B = None

    @torch.no_grad()
    def widen_lora(self, r: int) -> None:
        """Raises the rank to r. The new columns of B are zero, so the layer computes the same as before."""
        A, B = self.lora_A, self.lora_B
        if r > len(A):
            self.add_lora(r, self.scale * r, self.dropout)
            self.lora_A[: len(A)], self.lora_B[:, : len(A)] = A, B
