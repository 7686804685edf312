"""A stream in one forward pass: the numbers of Stream, and a training step for it."""

import json
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from experiments.books import StreamStep, Texts, train_adapter
from experiments.stream import AtOnce, Sizes
from minccm.extra.stream import Stream, max_slots
from minccm.io.adapters import load_adapter
from minccm.io.tokenizer import Tokenizer
from minccm.io.weights import load_model
from minccm.methods import get_method
from tests.conftest import oracle, random_model

FOLDER = oracle("ccm")
PATH = FOLDER / "stream_cases.json"
CASES = json.loads(PATH.read_text()) if PATH.is_file() else []
METHODS = ["ccm-concat", "ccm-merge", "ccm-merge-ema", "ccm-concat-independent", "ccm-merge-independent"]


@st.composite
def streams(draw):
    """Arguments of Stream, and the length of a text."""
    n = draw(st.integers(1, 3))
    method = get_method(draw(st.sampled_from(METHODS))) if draw(st.integers(0, 4)) else None
    chunk, sink = draw(st.integers(n + 1, 9)), draw(st.integers(0, 3))
    memory = max_slots(method, n, draw(st.integers(n, 3 * n)))
    window = sink + memory + chunk + draw(st.integers(0, 12))
    return method, Sizes(n, window, chunk, memory, sink), draw(st.integers(3, 150))


def random_ids(count: int, seed: int) -> list[int]:
    return torch.randint(3, 40, (count,), generator=torch.Generator().manual_seed(seed)).tolist()


@settings(max_examples=25, deadline=None, derandomize=True)
@given(streams(), st.integers(0, 99))
def test_numbers_of_the_stream(arguments, seed):
    """The log-likelihood of every token is that of Stream, segment by segment, within 1e-6."""
    method, sizes, length = arguments
    model, ids = random_model(sizes.n), random_ids(length + 1, seed)
    with torch.no_grad():
        expected = torch.cat(list(Stream(model, method, **vars(sizes)).score(ids)))
    got = AtOnce(model, method, sizes, length).score(ids)
    torch.testing.assert_close(got, expected, atol=1e-6, rtol=0)


@pytest.mark.skipif(not CASES, reason=f"no recorded numbers at {PATH}: set MINCCM_ORACLE")
@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
def test_authors_numbers(case):
    """The recorded log-likelihood of every token, within 1e-4."""
    model = load_model(FOLDER / "base")
    method, n = load_adapter(model, FOLDER / case["adapter"])
    recorded = load_file(FOLDER / f"{case['name']}.safetensors")
    sizes = Sizes(n, *(case[name] for name in ("window", "chunk", "memory", "sink")))
    ids = recorded["tokens"].tolist()
    got = AtOnce(model, method if case["compressed"] else None, sizes, len(ids) - 1).score(ids)
    torch.testing.assert_close(got, recorded["nll"], atol=1e-4, rtol=0)


def test_other_methods():
    """Pooled text is not streamed at once."""
    with pytest.raises(ValueError, match="compressive cannot be streamed at once"):
        AtOnce(random_model(2), get_method("compressive"), Sizes(2, 30, 10, 4), 50)


@pytest.mark.parametrize("name", ["ccm-concat", "ccm-merge"])
def test_a_training_step(name):
    """The loss is the stream's, over the tokens after the first compression; the teacher adds KL."""
    model, method, sizes = random_model(2), get_method(name, sink=True), Sizes(2, 24, 8, 4)
    step = StreamStep(model, method, sizes, 60, distill=0.0, compile=False)
    ids = random_ids(step.length + 1, 0)
    loss, *gradients = step.gradients(torch.tensor([ids]))
    with torch.no_grad():
        nll = torch.cat(list(Stream(model, method, **vars(sizes)).score(ids)))[sizes.window + 1 :]
    torch.testing.assert_close(loss.float(), nll.mean(), atol=1e-6, rtol=0)
    unused = 4  # A and B of q and o in the last layer, where nothing reads the output of a COMP token
    assert sum(bool(gradient.abs().max() > 0) for gradient in gradients) == len(gradients) - unused
    step.distill = 1.0
    assert step.loss(torch.tensor([ids])) > loss


def test_training(tiny, tmp_path):
    """An adapter for two sizes of the cache lowers the loss of its own text; a sample begins with BOS."""
    tokenizer, model = Tokenizer(tiny), load_model(tiny)
    text = "User: I live in Oslo.\nBot: How nice! It is a fine place, they say.\n" * 60
    which, tokens = Texts([text], tokenizer, [50, 40], 200, 4, 0)[1]
    assert which == 1 and tokens.shape == (5, 41) and bool((tokens[:, 0] == tokenizer.bos_id).all())
    options = dict(seed=0, r=4, window=[24, 30], length=70, distill=0.0, compile=False, adapter_steps=41)
    options = SimpleNamespace(**options, scale=1.0, row_tokens=140, workers=0, lr=1e-2, seconds=60)
    method = get_method("ccm-concat", sink=True)
    train_adapter(tmp_path / "a", model, tokenizer, method, 2, [text], options, "tiny")
    method, n = load_adapter(load_model(tiny), tmp_path / "a")
    assert (method.name, method.sink, n) == ("ccm-concat", True, 2)
    sizes, ids = Sizes(2, 24, 9, 8), [tokenizer.bos_id] + tokenizer.encode(text)[:300]
    window, compressed = (AtOnce(model, of, sizes, len(ids) - 1).score(ids).mean() for of in (None, method))
    assert compressed < window
