"""The numbers of the authors' implementation: logits, loss, gradients, memory and recursion, from their adapters."""

import json

import pytest
import torch
from safetensors.torch import load_file

from minccm.io.adapters import load_adapter
from minccm.io.weights import load_model
from minccm.parallel import ParallelKV, loss
from minccm.sequence import build_sequence, pad_batch
from minccm.session import Session
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
    """Logits of input and output within 1e-4, loss within 1e-5, every gradient within 1e-5. Padding changes nothing."""
    model, method, n, recorded = open_case(case)
    build = lambda contexts, *question: build_sequence(method, n, model.config.vocab_size, contexts, [question])
    sequence = build(case["segments"], case["input"], case["target"])

    found = loss(model, method, pad_batch([sequence]))
    found.backward()
    assert abs(found.item() - recorded["loss"].item()) < 1e-5
    for name, parameter in model.adapter_state().items():
        key = "embed_tokens.comp_embeddings" if name == "comp_embeddings" else name
        expected = recorded[f"grad.base_model.model.model.{key}.weight"][: len(parameter)]  # without their SUM tokens
        torch.testing.assert_close(parameter.grad, expected, atol=1e-5, rtol=0)

    length, text = len(sequence), len(case["input"] + case["target"])
    longer = build([*case["segments"], [5, 6]], case["input"], case["target"])
    for batch in (pad_batch([sequence]), pad_batch([sequence, longer])):
        kv = ParallelKV(method, batch)
        logits = model(batch.tokens, batch.positions, kv, method.lora_mask(batch.info))[0, length - text : length]
        torch.testing.assert_close(logits, recorded["logits"][-text:], atol=1e-4, rtol=0)


@each_case
def test_recursion(case):
    """Read context by context: every memory tensor after each context, and the logits from it, within 1e-4."""
    model, method, n, recorded = open_case(case)
    session = Session(model, method, n)
    contexts = [sum(case["segments"], [])] if method.comp_after == "end" else case["segments"]
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
