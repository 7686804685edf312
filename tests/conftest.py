"""Where the recorded numbers are, and a tiny random model for the tests that need no trained one.

MINCCM_ORACLE names a folder of recorded numbers. By default it is ../shared/oracle, or else the small subset in
tests/recorded.
"""

import os
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from minccm.io import options as cli  # noqa: E402
from minccm.io.options import load_method  # noqa: E402
from minccm.methods import METHODS  # noqa: E402
from minccm.model import LlamaConfig, Transformer  # noqa: E402

torch.set_num_threads(1)
EXAMPLES = {method.name: method for method in map(load_method, map(str, sorted((ROOT / "examples").glob("*.py"))))}
ALL_METHODS = METHODS | EXAMPLES


def oracle(part: str) -> Path:
    """The folder of one part of the recorded numbers; it may not exist."""
    named = os.environ.get("MINCCM_ORACLE")
    folders = [Path(named)] if named else [ROOT.parent / "shared" / "oracle", ROOT / "tests" / "recorded"]
    return next((folder / part for folder in folders if (folder / part).is_dir()), folders[0] / part)


def random_model(n: int, dtype=torch.float64, seed=0, adapter=True, learned=(), head_dim=4, layers=2) -> Transformer:
    """A few layers of width 16, with an adapter whose B is not zero."""
    torch.manual_seed(seed)
    config = LlamaConfig(vocab_size=40, dim=16, ffn_dim=24, n_layers=layers, n_heads=4, n_kv_heads=2, head_dim=head_dim)
    model = Transformer(config).eval()
    if adapter:
        model.add_adapter(n, r=2, alpha=4, dropout=0.0, learned=learned)
        for tensor in model.adapter_state().values():
            torch.nn.init.normal_(tensor, std=0.5)
    return model.to(dtype)


@pytest.fixture
def call(monkeypatch, capfd):
    """A function that runs an experiment's main with arguments; returns its exit status and all that it printed."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # other tests run at the same time

    def run(module, *arguments) -> tuple[int, str]:
        monkeypatch.setattr("sys.argv", [module.__name__, *map(str, arguments)])
        status = 0
        try:
            cli.run(module.main)
        except SystemExit as stop:
            status = stop.code
        printed = capfd.readouterr()
        return status, printed.out + printed.err

    return run


@pytest.fixture(scope="session")
def tiny() -> Path:
    """The model that ships."""
    return ROOT / "data" / "tiny"
