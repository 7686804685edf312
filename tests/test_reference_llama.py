"""The transformer is LLaMA: logits and greedy text of a reference implementation, from every layout of weights."""

import pytest
import torch
from safetensors.torch import load_file

from minccm.io.weights import load_model
from minccm.methods import get_method
from minccm.session import Session
from tests.conftest import oracle

FOLDER = oracle("llama")
NAMES = sorted(path.name for path in FOLDER.glob("*/")) if FOLDER.is_dir() else []
pytestmark = pytest.mark.skipif(not NAMES, reason=f"no recorded numbers at {FOLDER}: set MINCCM_ORACLE")


@pytest.mark.parametrize("name", NAMES)
def test_logits_and_greedy_text(name):
    """Logits of both rows within 1e-4; from memory of full context, the same 24 tokens."""
    model, expected = load_model(FOLDER / name), load_file(FOLDER / f"{name}.expected.safetensors")
    ids = expected["input_ids"]
    logits = model(ids, torch.arange(ids.shape[1]).expand_as(ids))
    torch.testing.assert_close(logits, expected["logits"], atol=1e-4, rtol=0)

    greedy = expected["greedy"].flatten().tolist()[-24:]
    session = Session(model, get_method("full"), 0)
    session.read(ids[0, :6].tolist())  # with full context, the border between context and input does not matter
    assert list(session.generate(ids[0, 6:10].tolist(), max_tokens=24, stop_ids=())) == greedy
