"""Streaming: the authors' numbers, and that it does not matter in what pieces a text is read."""

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from minccm.checkpoint import load_adapter, load_model
from minccm.methods import get_method
from minccm.stream import Stream
from tests.conftest import oracle, random_model

FOLDER = oracle("ccm")
PATH = FOLDER / "stream_cases.json"
CASES = json.loads(PATH.read_text()) if PATH.is_file() else []


@pytest.mark.skipif(not CASES, reason=f"no recorded numbers at {PATH}: set MINCCM_ORACLE")
@pytest.mark.parametrize("stretch", [None, 1], ids=["by stretches", "token by token"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
def test_the_authors_numbers(case, stretch):
    """The negative log-likelihood of every token within 1e-4, and the size of the cache before each."""
    model = load_model(FOLDER / "base")
    method, n = load_adapter(model, FOLDER / case["adapter"])
    recorded = load_file(FOLDER / f"{case['name']}.safetensors")
    sizes = {name: case[name] for name in ("window", "chunk", "memory", "sink")}
    stream = Stream(model, method if case["compressed"] else None, n, **sizes)
    before, nll = [], []
    ids, length = recorded["tokens"].tolist(), 0
    for piece in stream.score(ids, stretch):
        before += range(length, length + len(piece))
        nll.append(piece)
        length = len(stream)
    torch.testing.assert_close(torch.cat(nll), recorded["nll"], atol=1e-4, rtol=0)
    assert before == recorded["kv_length"].tolist()
