"""Distillation: the base model with full context teaches the student, which predicts from its memory.

The paper trains on the true outputs only; later work found that distillation helps. The teacher is the student's own
base model without the adapter (a step-1 adapter, if there is one, is part of the base). It runs on the same batch:
text attends to all earlier text and to no COMP token. COMP tokens do not advance the position, so this is full context.
"""

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from minccm.methods import Method, TokenInfo
from minccm.parallel import forward_parallel
from minccm.sequence import Sequence


def attends_to_text(q: TokenInfo, k: TokenInfo) -> Tensor:
    """The attention rule of full context."""
    return k.is_text


def teacher_inputs(method: Method, batch: Sequence) -> tuple[Method, Sequence]:
    """The teacher's method, and its batch: the student's, less the memory slots. Loss tokens: those of weight >= 1.

    No LoRA acts on the teacher's text, as conditional LoRA acts on COMP tokens only.
    """
    method = replace(method, attends=attends_to_text, merge_rate=None, learned=(), conditional=True)
    no_slots = batch.slots.map(lambda field: field[..., :0])
    return method, replace(batch, slots=no_slots, loss_weights=batch.loss_weights * (batch.loss_weights >= 1))


@torch.no_grad()
def teacher_logits(model, method: Method, batch: Sequence, forward=forward_parallel) -> Tensor:
    """Logits (R, vocab_size) of the teacher, for the R tokens of `batch` with loss weight >= 1.

    method: the student's. forward(model, method, batch): computes the logits, as parallel.forward_parallel does.
    """
    return forward(model, *teacher_inputs(method, batch))


def distillation_loss(logits: Tensor, teacher: Tensor) -> Tensor:
    """KL(teacher || student) in nats, summed over R tokens. logits, teacher: (R, vocab_size)."""
    logits, teacher = (x.float().log_softmax(-1) for x in (logits, teacher))
    return F.kl_div(logits, teacher, reduction="sum", log_target=True)
