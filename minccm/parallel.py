"""Parallel training: the whole recursion over time steps as one forward pass under one mask (paper: algorithm 1).

Concatenated memory needs nothing but the mask, since the COMP tokens' own keys and values are the memory. Merged memory
appears as extra keys and values after those of the tokens,

    K' = [K; P K],    V' = [V; P V]

where row (t, j) of P averages COMP token j of steps 1 to t with the weights of Mem(t) = (1 - a_t) Mem(t-1) + a_t h(t).
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from minccm.methods import Method, TokenInfo, attention_mask, merge_weights
from minccm.model import attend
from minccm.sequence import Sequence


def merge_matrix(method: Method, info: TokenInfo, slots: TokenInfo) -> Tensor:
    """P: fp64 (B, M, N), the weight of each of N tokens in each of M memory slots.

    A token goes into the slots with its own number j, weighted by their steps. Where several tokens of a step have the
    same j (pooled text), they share that weight.
    """
    last_step = max(0, int(slots.step.max()))
    weights = merge_weights(method, last_step + 1).to(info.kind.device)  # (T, T, 1 or n)
    slot, token = slots.map(lambda field: field[..., :, None]), info.map(lambda field: field[..., None, :])
    goes_in = slot.is_slot & (token.slot == slot.slot) & (token.step >= 0) & (token.question == 0)  # (B, M, N)
    row, column = slot.step.clamp(0, last_step), token.step.clamp(0, last_step)
    P = goes_in * weights[row, column, slot.slot.clamp(0, weights.shape[2] - 1)]
    same_part = (info.slot[..., :, None] == token.slot) & (info.step[..., :, None] == token.step) & (token.slot >= 0)
    return P / same_part.sum(-1).clamp(min=1)[..., None, :]


class ParallelKV:
    """Keys and values of the parallel pass: those of the tokens, then the memory slots of every step."""

    def __init__(self, method: Method, batch: Sequence):
        keys = TokenInfo.cat([batch.info, batch.slots])
        self.mask = attention_mask(method, batch.info, keys)[:, None]  # bool (B, 1, N, N + M)
        self.P = merge_matrix(method, batch.info, batch.slots)[:, None] if len(batch.slots) else None

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """q (B, heads, N, head_dim), k and v (B, kv_heads, N, head_dim) -> (B, heads, N, head_dim)."""
        if self.P is not None:
            self.P = self.P.to(k.dtype)
            k, v = torch.cat([k, self.P @ k], 2), torch.cat([v, self.P @ v], 2)
        return attend(q, k, v, self.mask)


def forward_parallel(model, method: Method, batch: Sequence, kv: ParallelKV | None = None) -> Tensor:
    """Logits (R, vocab_size) of a batch, all time steps at once, for the R tokens whose next token the loss covers.

    kv: another than the method's own, for example with another P.
    """
    kv = kv or ParallelKV(method.bind(model), batch)
    return model(batch.tokens, batch.positions, kv, method.lora_mask(batch.info), at=batch.loss_weights > 0)


def weighted_loss(logits: Tensor, batch: Sequence) -> Tensor:
    """The sum over R tokens of their loss weight times the cross-entropy of the next token, in nats.

    logits (R, vocab_size): as forward_parallel returns them for the batch.
    """
    at = batch.loss_weights > 0
    labels = batch.tokens.roll(-1, dims=1)[at]
    return (F.cross_entropy(logits.float(), labels, reduction="none") * batch.loss_weights[at]).sum()


def loss(model, method: Method, batch: Sequence) -> Tensor:
    """The loss of a batch: the weighted mean cross-entropy, by default over the outputs and their EOS."""
    return weighted_loss(forward_parallel(model, method, batch), batch) / batch.loss_weights.sum()
