"""The cost of compression, by formula: the same number of operations that PyTorch's own counter finds."""

import json

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from experiments import costs
from experiments.costs import CONTEXT, flops, pays_from, step_flops
from minccm.io.config import SHAPES
from minccm.methods import get_method
from minccm.session import Session
from tests.conftest import random_model


def counted(run) -> int:
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH), torch.no_grad():
        run()
    return counter.get_total_flops()


@pytest.mark.parametrize("n", [1, 2, 4, 8])
def test_the_formula_is_exact(n):
    """Reading and compressing after some contexts, and answering."""
    model, ids = random_model(n, torch.float32), torch.arange(CONTEXT).remainder(37).tolist()
    config = model.config
    session = Session(model, get_method("ccm-concat"), n)
    for steps in range(3):
        assert counted(lambda: session.read(ids)) == flops(config, CONTEXT + n, n * steps, n, 2)  # changes the memory
    assert counted(lambda: session.logits(ids[:9])) == flops(config, 9, 3 * n, logits=9)
    plain = Session(random_model(0, torch.float32, adapter=False), get_method("full"), 0)
    for steps in range(2):
        assert counted(lambda: plain.read(ids)) == flops(config, CONTEXT, CONTEXT * steps)


def test_where_compression_pays():
    """Below that length full context is cheaper, from there on compression is. More COMP tokens pay later."""
    config = SHAPES["7b"]
    for merged in (False, True):
        lengths = [pays_from(config, n, merged) for n in (1, 2, 4, 8)]
        assert lengths == sorted(lengths)
        for n, length in zip((1, 2, 4, 8), lengths):
            assert step_flops(config, length, n, merged) < step_flops(config, length, None)
            assert step_flops(config, length - CONTEXT, n, merged) >= step_flops(config, length - CONTEXT, None)
    assert pays_from(config, CONTEXT, merged=False) is None  # as many COMP tokens as text save nothing


@pytest.mark.parametrize("more", [[], ["--fast"]], ids=["plain", "fast"])
def test_it_is_measured(monkeypatch, tmp_path, capsys, more):
    """python -m experiments.costs: a row for each method and length, and where compression begins to pay."""
    monkeypatch.setattr(costs, "LENGTHS", (100, 200))
    files = [tmp_path / "costs.json", tmp_path / "costs.png"]
    command = ["costs", "--model", "random:1m", "--device", "cpu", "--json", files[0], "--picture", files[1], *more]
    monkeypatch.setattr("sys.argv", list(map(str, command)))
    costs.main()
    rows = json.loads(files[0].read_text())
    measured = {(row["method"], row["context"]): row["kv_pairs"] for row in rows if "context" in row}
    assert [measured[name, 200] for name in ("full", "ccm-concat", "ccm-merge")] == [200, 8, 2]
    assert {row["n"] for row in rows if "pays_from" in row} == {1, 2, 4, 8}
    assert files[1].stat().st_size > 1000 and "GFLOP to read" in capsys.readouterr().out
