"""Distillation: the teacher predicts the outputs with full context in view, from the student's own batch."""

import pytest
import torch

from minccm.extra.distill import distillation_loss, teacher_logits
from minccm.methods import METHODS, get_method
from minccm.parallel import forward_parallel
from minccm.sequence import build_sequence, pad_batch
from tests.conftest import random_model

SAMPLES = [([[1, 7, 8], [9, 5]], [3, 3], [4, 6, 2]), ([[1, 4]], [8], [5, 2])]  # contexts, input, output


@pytest.mark.parametrize("name", [name for name, method in METHODS.items() if method.reads_context])
@pytest.mark.parametrize("context_loss", [0.0, 0.1])
def test_the_teacher_has_full_context(name, context_loss):
    """Its logits are those of the base model with full context, for the outputs only, whatever LoRA does."""

    def batch_of(method):
        build = lambda contexts, *question: build_sequence(method, 2, 40, contexts, [question], None, context_loss)
        return pad_batch([build(*sample) for sample in SAMPLES])

    model, method, full = random_model(2), get_method(name), get_method("full")
    found, expected = teacher_logits(model, method, batch_of(method)), forward_parallel(model, full, batch_of(full))
    is_output = batch_of(full).loss_weights[batch_of(full).loss_weights > 0] >= 1
    torch.testing.assert_close(found, expected[is_output], atol=1e-9, rtol=1e-9)
    assert len(found) == 5 and not found.requires_grad


def test_the_loss_is_a_divergence():
    """The sum over tokens of KL(teacher || student), in nats; its gradient reaches the student only."""
    student, teacher = torch.randn(3, 5, requires_grad=True), torch.randn(3, 5)
    loss = distillation_loss(student, teacher)
    expected = (teacher.softmax(-1) * (teacher.log_softmax(-1) - student.log_softmax(-1))).sum()
    torch.testing.assert_close(loss, expected)
    loss.backward()
    torch.testing.assert_close(student.grad, student.softmax(-1) - teacher.softmax(-1))
    assert distillation_loss(teacher, teacher).abs() < 1e-6
