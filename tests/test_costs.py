"""What compression costs, by formula: the same operations that PyTorch's own counter counts."""

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from measure.costs import CONTEXT, flops, pays_from, step_flops
from minccm.config import SHAPES
from minccm.methods import get_method
from minccm.online import Session
from tests.conftest import random_model


def counted(run) -> int:
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH), torch.no_grad():
        run()
    return counter.get_total_flops()


@pytest.mark.parametrize("n", [1, 2, 4, 8])
def test_formula_is_what_is_counted(n):
    """Reading and compressing after some contexts, and answering: to the last operation."""
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
    """Just before that length full context is cheaper, from there on compression is; more COMP tokens pay later."""
    config = SHAPES["7b"]
    for merged in (False, True):
        lengths = [pays_from(config, n, merged) for n in (1, 2, 4, 8)]
        assert lengths == sorted(lengths)
        for n, length in zip((1, 2, 4, 8), lengths):
            assert step_flops(config, length, n, merged) < step_flops(config, length, None)
            assert step_flops(config, length - CONTEXT, n, merged) >= step_flops(config, length - CONTEXT, None)
    assert pays_from(config, CONTEXT, merged=False) is None  # as many COMP tokens as text save nothing
