"""Distillation: what the base model predicts with full context in view teaches what to predict from the memory.

The paper trains on the true targets alone; later work found that this helps. The teacher is the student's own base
without the adapter (with step 1, where that is merged), in a second forward pass over the same batch: text sees all
text before it and no COMP token, and since COMP tokens do not advance positions, that is full context.
"""

import functools
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from minccm.layout import Batch
from minccm.mask import predict
from minccm.methods import Method


@functools.cache
def teacher(method: Method) -> Method:
    """The same layout, in which text sees all text before it, and nothing is merged."""
    return replace(method, sees=lambda q, k: k.text, rate=None, learned=())


def lesson(method: Method, batch: Batch) -> tuple[Method, Batch]:
    """What the teacher is shown of a batch: all of it, as its last block reads the contexts, too."""
    return teacher(method), replace(batch, last=None)


def divergence(
    model, method: Method, batch: Batch, logits: Tensor, rows: Tensor, flex: bool = False, blocks=None
) -> Tensor:
    """KL(full context || memory) in nats, summed over the tokens that count fully: the target, and answers before it.

    logits (R, vocab_size), rows (R,): what mask.predict gives for the batch; blocks: as there, of the teacher.
    """
    with torch.no_grad():
        taught, _ = predict(model, *lesson(method, batch), flex, adapted=False, blocks=blocks)  # (R, vocab_size)
    target = batch.weights.flatten()[rows] >= 1
    logits, taught = (x.float().log_softmax(-1) for x in (logits, taught))
    return (F.kl_div(logits, taught, log_target=True, reduction="none").sum(-1) * target).sum()
