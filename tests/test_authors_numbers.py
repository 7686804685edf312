"""The same numbers as the authors' implementation: logits, loss, gradients, memory, recursion, their adapters."""

import json

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from minccm.checkpoint import load_adapter, load_model
from minccm.layout import collate, lay_out
from minccm.mask import predict
from minccm.online import Session
from tests.conftest import oracle

FOLDER = oracle("ccm")
CASES = json.loads((FOLDER / "cases.json").read_text()) if (FOLDER / "cases.json").is_file() else []
pytestmark = pytest.mark.skipif(not CASES, reason=f"no recorded numbers at {FOLDER}: set MINCCM_ORACLE")
each_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])


def open_case(case):
    model = load_model(FOLDER / "base")
    method, n = load_adapter(model, FOLDER / case["name"])
    assert n == case["n_tok"] and method.sink == case["sink"]
    return model, method, n, load_file(FOLDER / f"{case['name']}.safetensors")


@each_case
def test_parallel_pass(case):
    """Logits on input and target within 1e-4, loss within 1e-5, every gradient within 1e-5."""
    model, method, n, recorded = open_case(case)
    layout = lay_out(method, n, model.config.vocab_size, case["segments"], case["input"], case["target"])
    batch = collate([[layout]])

    logits, rows = predict(model, method, batch)
    loss = F.cross_entropy(logits, batch.labels.flatten()[rows])
    loss.backward()
    assert abs(loss.item() - recorded["loss"].item()) < 1e-5
    for name, tensor in model.adapter_state().items():
        key = "embed_tokens.comp_embeddings" if name == "comp_embeddings" else name
        expected = recorded[f"grad.base_model.model.model.{key}.weight"][: len(tensor)]  # without the SUM rows
        torch.testing.assert_close(tensor.grad, expected, atol=1e-5, rtol=0)

    length = len(case["input"] + case["target"])
    layout.weights[-length:], layout.last[:] = 1, True  # now predict from every place of input and target
    logits, _ = predict(model, method, collate([[layout]]))
    torch.testing.assert_close(logits[-length:], recorded["logits"][-length:], atol=1e-4, rtol=0)


@each_case
def test_recursion(case):
    """Read context by context: every memory tensor after every context, and the logits from it, within 1e-4."""
    model, method, n, recorded = open_case(case)
    session = Session(model, method, n)
    contexts = [sum(case["segments"], [])] if method.comp == "end" else case["segments"]
    compared = 0
    for i, context in enumerate(contexts):
        session.read(context)
        for layer in range(model.config.n_layers):
            for name, tensor in (("k", session.memory.keys), ("v", session.memory.values)):
                if f"memory.{i}.layer{layer}.{name}" in recorded:
                    expected = recorded[f"memory.{i}.layer{layer}.{name}"]
                    torch.testing.assert_close(tensor[layer], expected, atol=1e-4, rtol=0)
                    compared += 1
    assert compared or "recur" not in case["attn_type"]
    text = case["input"] + case["target"]
    expected = recorded.get("recursive_logits", recorded["logits"])[-len(text) :]
    torch.testing.assert_close(session.logits(text), expected, atol=1e-4, rtol=0)
