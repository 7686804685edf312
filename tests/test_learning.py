"""Twenty steps of train.py's own step lower the loss, in the plain and in the fast form, by the same losses."""

import pytest
import torch

from minccm.extra.training import PlainStep
from minccm.fast.step import FastStep, parse_fast
from minccm.io.weights import load_model
from minccm.methods import get_method
from tests.test_training import micro, steps_of  # noqa: F401  a fixture

FORMS = {"plain": "off", "fast": "pack,prune,prefix"}


def learn(folder, method, form: str, distill: float = 0.0) -> list[float]:
    """The losses of twenty optimizer steps, each on the same few samples."""
    model = load_model(folder)
    torch.manual_seed(0)
    model.add_adapter(4, 4, 8.0, 0.0, method.learned)
    model.train()
    fast = parse_fast(FORMS[form], torch.device("cpu"), 1e5)
    step = PlainStep(model, method, None, distill) if fast is None else FastStep(model, method, fast, 2048, distill)
    batches = step.batches(
        steps_of(method.name, "dialog", folder, n=4, batch=4, max_contexts=4, context_loss=0.01).sequences(0)
    )
    total_weight = sum(float(batch.loss_weights.sum()) for batch in batches)
    trained = list(model.adapter_state().values())
    optimizer, losses = torch.optim.AdamW(trained, 3e-2, (0.9, 0.95), weight_decay=0.0), []
    for _ in range(20):
        losses.append(float(step.backward(batches, total_weight)))
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return losses


@pytest.mark.parametrize("name", ["ccm-concat", "ccm-merge", "ccm-concat-independent", "compressive", "gist"])
def test_the_loss_falls(micro, name):  # noqa: F811
    """By half a nat at least; the plain and the fast form have the same losses at every step."""
    plain, fast = (learn(micro, get_method(name), form) for form in FORMS)
    assert plain[-1] < plain[0] - 0.5
    assert fast == pytest.approx(plain, abs=2e-3) and fast[0] == pytest.approx(plain[0], abs=1e-4)


def test_distillation_falls_too(micro):  # noqa: F811
    """The loss with its teacher, in both forms."""
    plain, fast = (learn(micro, get_method("ccm-concat"), form, distill=1.0) for form in FORMS)
    assert plain[-1] < plain[0] - 0.3
    assert fast == pytest.approx(plain, abs=2e-3)
