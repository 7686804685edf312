"""The loss of a step: weighted cross-entropy, and distillation by KL divergence, without all logits in memory at once.

Logits (R, vocab_size) are the largest tensor of a small model's training step, and each operation on them reads and
writes them again. `chunked_loss` computes some rows of them at a time. It takes the gradient of the loss with respect
to the hidden states right away, so nothing of this size is kept for the backward pass.
"""

import functools

import torch
import torch.nn.functional as F
from torch import Tensor

CHUNK = 2**24  # logits of a chunk
COMPILED_CHUNK = 2**27  # the same in compiled code, which keeps no fp32 copies of them


def weighted_loss(
    logits: Tensor, labels: Tensor, weights: Tensor, teacher: Tensor | None = None, distill: float = 0.0
) -> Tensor:
    """The sum () over R tokens of weight * cross-entropy in nats, plus, where the weight is at least 1, distill * KL.

    logits: (R, vocab_size). labels: int64 (R,). weights: fp32 (R,). KL(teacher || student) is in nats; teacher: its
    logits (R, vocab_size).
    """
    dtype = torch.promote_types(logits.dtype, torch.float32)
    loss = (F.cross_entropy(logits.to(dtype), labels, reduction="none") * weights).sum()
    if teacher is None:
        return loss
    logits, teacher = (x.to(dtype).log_softmax(-1) for x in (logits, teacher))
    kl = F.kl_div(logits, teacher, log_target=True, reduction="none").sum(-1)  # (R,)
    return loss + distill * (kl * (weights >= 1)).sum()


def chunked_loss(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    weights: Tensor,
    teacher: Tensor | None = None,
    distill: float = 0.0,
    compile: bool = False,
) -> Tensor:
    """weighted_loss of the logits hidden W^T, in chunks of rows. Only `hidden` gets a gradient.

    hidden: (R, dim), after the final norm; teacher: the same of the teacher, or None. weight: W (vocab_size, dim) of
    lm_head, frozen. compile: a chunk's softmax, KL and gradient as a few kernels, for a GPU.
    """
    return _ChunkedLoss.apply(hidden, weight, labels, weights, teacher, distill, compile)


class _ChunkedLoss(torch.autograd.Function):
    """See chunked_loss. The forward pass also computes the gradient, in the dtype of `hidden`."""

    @staticmethod
    def forward(ctx, hidden, weight, labels, weights, teacher, distill, compile):
        function, logits = (_compiled_chunk(), COMPILED_CHUNK) if compile else (_chunk, CHUNK)
        rows = max(1, 1 << (logits // len(weight)).bit_length() - 1)  # a power of two, as R is in packed rows
        gradient, losses = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None, []
        for i in range(0, len(hidden), rows):
            part = slice(i, i + rows)
            of_teacher = None if teacher is None else F.linear(teacher[part], weight)
            logits = F.linear(hidden[part], weight)
            loss, d_logits = function(logits, labels[part], weights[part], of_teacher, distill, gradient is not None)
            losses.append(loss)
            if gradient is not None:
                torch.mm(d_logits, weight, out=gradient[part])
        ctx.save_for_backward(gradient)
        return torch.stack(losses).sum() if losses else hidden.sum()

    @staticmethod
    def backward(ctx, factor):
        (gradient,) = ctx.saved_tensors
        return (gradient.to(factor.dtype) * factor).to(gradient.dtype), *(None,) * 6


def _chunk(
    logits: Tensor, labels: Tensor, weights: Tensor, teacher: Tensor | None, distill: float, gradient: bool
) -> tuple[Tensor, Tensor | None]:
    """weighted_loss, and if asked its gradient with respect to the logits (R, vocab_size), in their dtype.

    For p the softmax of the logits, and q that of the teacher's, the gradients of cross-entropy and of KL(q || p) are
    p - 1[label] and p - q.
    """
    dtype = torch.promote_types(logits.dtype, torch.float32)
    labels, weights = labels[:, None], weights.to(dtype)[:, None]
    log_p = logits.to(dtype).log_softmax(-1)
    loss, factor = -(log_p.gather(1, labels) * weights).sum(), weights
    if teacher is not None:
        log_q, distilled = teacher.to(dtype).log_softmax(-1), distill * (weights >= 1).to(dtype)
        q, factor = log_q.exp(), weights + distilled
        loss = loss + ((q * (log_q - log_p)).sum(-1, keepdim=True) * distilled).sum()
    if not gradient:
        return loss, None
    d_logits = factor * log_p.exp()
    if teacher is not None:
        d_logits = d_logits - distilled * q
    if torch.compiler.is_compiling():  # part of the kernel that writes d_logits
        is_label = torch.arange(logits.shape[1], device=logits.device) == labels
        d_logits = d_logits - torch.where(is_label, weights, 0)
    else:
        d_logits.scatter_add_(1, labels, -weights)
    return loss, d_logits.to(logits.dtype)


@functools.cache
def _compiled_chunk():
    return torch.compile(_chunk)
