"""Streaming: the authors' numbers, however a text is divided into pieces, and a cache that does not grow."""

import itertools
import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from minccm.extra.stream import Stream
from minccm.io.adapters import load_adapter
from minccm.io.weights import load_model
from minccm.memory import Memory
from minccm.methods import TokenInfo, get_method
from minccm.sequence import step_rows
from tests.conftest import oracle, random_model

FOLDER = oracle("ccm")
PATH = FOLDER / "stream_cases.json"
CASES = json.loads(PATH.read_text()) if PATH.is_file() else []


@pytest.mark.skipif(not CASES, reason=f"no recorded numbers at {PATH}: set MINCCM_ORACLE")
@pytest.mark.parametrize("max_segment", [None, 1], ids=["by segments", "token by token"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
def test_authors_numbers(case, max_segment):
    """The negative log-likelihood of every token is within 1e-4, and the cache has the same size before each token."""
    model = load_model(FOLDER / "base")
    method, n = load_adapter(model, FOLDER / case["adapter"])
    recorded = load_file(FOLDER / f"{case['name']}.safetensors")
    sizes = {name: case[name] for name in ("window", "chunk", "memory", "sink")}
    stream = Stream(model, method if case["compressed"] else None, n, **sizes)
    before, nll = [], []
    ids, length = recorded["tokens"].tolist(), 0
    for piece in stream.score(ids, max_segment):
        before += range(length, length + len(piece))
        nll.append(piece)
        length = len(stream)
    torch.testing.assert_close(torch.cat(nll), recorded["nll"], atol=1e-4, rtol=0)
    assert before == recorded["kv_length"].tolist()


METHODS = ["ccm-concat", "ccm-merge", "ccm-merge-ema", "ccm-concat-independent", "ccm-merge-independent", "compressive"]


@st.composite
def streams(draw):
    """Arguments of Stream, and lengths of the pieces of a text."""
    n = draw(st.integers(1, 3))
    chunk, memory, sink = draw(st.integers(n + 1, 9)), n * draw(st.integers(1, 3)), draw(st.integers(0, 3))
    window = sink + memory + chunk + draw(st.integers(0, 12))
    method = get_method(draw(st.sampled_from(METHODS))) if draw(st.integers(0, 5)) else None
    pieces = draw(st.lists(st.integers(1, 40), min_size=1, max_size=8))
    return (method, n, window, chunk, memory, sink), pieces


@settings(max_examples=25, deadline=None, derandomize=True)
@given(streams(), st.integers(0, 99))
def test_pieces_do_not_matter(arguments, seed):
    """Logits are the same, within 1e-9 in float64, in any pieces, by segments and token by token."""
    (method, n, *sizes), pieces = arguments
    model = random_model(n)
    ids = torch.randint(3, 40, (sum(pieces),), generator=torch.Generator().manual_seed(seed)).tolist()
    expected = Stream(model, method, n, *sizes).read(ids)
    stream, one = Stream(model, method, n, *sizes), Stream(model, method, n, *sizes)
    starts = [0, *itertools.accumulate(pieces)]
    got = torch.cat([stream.read(ids[a:b]) for a, b in zip(starts, starts[1:])])
    torch.testing.assert_close(got, expected, atol=1e-9, rtol=1e-9)
    lengths = []
    for id, logits in zip(ids, expected):
        torch.testing.assert_close(one.read([id])[0], logits, atol=1e-9, rtol=1e-9)
        lengths.append(len(one))
    assert max(lengths) <= sizes[0] and len(stream) == len(one)


def test_window_is_as_large_as_the_cache():
    """At every token the sliding window holds as many pairs as compression does, and as many bytes."""
    for memory in (2, 5, 8):
        one = Stream(random_model(2), get_method("ccm-concat"), 2, 30, 10, memory)
        other = Stream(random_model(2), None, 2, 30, 10, memory)
        for id in range(3, 40):
            one.read([id] * 3), other.read([id] * 3)
            assert len(one) == len(other) and one.nbytes == other.nbytes


@pytest.mark.parametrize("sink", [0, 1, 4])
def test_what_is_kept(sink):
    """The sink does not change; merged memory is the mean of all COMP tokens, concatenated memory holds the newest."""
    ids = torch.randint(3, 40, (400,), generator=torch.Generator().manual_seed(0)).tolist()
    for name in ("ccm-merge", "ccm-concat"):
        stream, comps = Stream(random_model(2), get_method(name), 2, 40, 10, 6, sink), []
        compress = stream.compress
        stream.compress = lambda comp, seen=comps, compress=compress: (seen.append(comp), compress(comp))
        stream.read(ids[:30])
        first = stream.memory.keys[:, :, :sink].clone()
        stream.read(ids[30:])
        assert torch.equal(stream.memory.keys[:, :, :sink], first) and len(comps) > 20
        expected = torch.stack(comps).mean(0) if name == "ccm-merge" else torch.cat(comps[-3:], 3)
        torch.testing.assert_close(stream.compressed, expected, atol=1e-12, rtol=0)


@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-12), (torch.bfloat16, 1e-5)])
@pytest.mark.parametrize("name", ["ccm-merge", "ccm-merge-ema"])
def test_running_mean_is_exact(name, dtype, tolerance):
    """Over 3,000 steps of bf16 numbers the mean stays at an average in float64; a bf16 mean would stop moving.

    A Stream keeps float64. A Session of a bf16 model keeps fp32.
    """
    method, n, steps = get_method(name), 1, 3000
    memory = Memory.empty(random_model(1).config, method, dtype)
    generator = torch.Generator().manual_seed(0)
    comps = (torch.randn(2, 2, 2, steps, 4, generator=generator) + 3).bfloat16()
    expected = torch.zeros(2, 2, 2, 1, 4, dtype=torch.float64)
    for step in range(steps):
        _, *infos = step_rows(method, n, 0, step, memory.tokens)
        info, slots = map(TokenInfo.from_rows, infos)
        memory = memory.update(method, *comps[:, :, :, step : step + 1], info, slots, text=0)
        rate = method.merge_rate(step + 1)
        expected = (1 - rate) * expected + rate * comps[:, :, :, step : step + 1].double()
    assert len(memory) == n
    if name == "ccm-merge":
        torch.testing.assert_close(expected, comps.double().mean(3, keepdim=True), atol=1e-9, rtol=0)
    held = torch.stack([memory.keys, memory.values]).double()
    torch.testing.assert_close(held, expected, atol=tolerance, rtol=0)


def test_stream_merges_in_float64():
    """Merged memory of an fp32 model is within 1e-12 of an average of all COMP tokens in float64."""
    ids = torch.randint(3, 40, (3000,), generator=torch.Generator().manual_seed(0)).tolist()
    stream, comps = Stream(random_model(2, torch.float32), get_method("ccm-merge"), 2, 40, 10, 2), []
    compress = stream.compress
    stream.compress = lambda comp: (comps.append(comp.double()), compress(comp))
    stream.read(ids)
    assert len(comps) > 200
    torch.testing.assert_close(stream.compressed, torch.stack(comps).mean(0), atol=1e-12, rtol=0)


def test_sizes_that_do_not_fit():
    """Sizes that do not fit together are refused, and so are methods that keep no memory of a chunk."""
    model = random_model(2)
    for sizes in ((20, 16, 8), (40, 2, 8), (40, 16, 1)):
        with pytest.raises(ValueError, match="no space"):
            Stream(model, get_method("ccm-concat"), 2, *sizes)
    for name in ("full", "none", "gist"):
        with pytest.raises(ValueError, match="keeps no memory of a chunk"):
            Stream(model, get_method(name), 2)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="CUDA graphs need a GPU")
@pytest.mark.parametrize("name", [None, "ccm-concat", "ccm-merge", "compressive"])
def test_replayed_on_a_gpu(name):
    """On a GPU a graph replays full segments: the same numbers as on a CPU, within 1e-3 in fp32."""
    ids, nll = torch.randint(3, 39, (400,), generator=torch.Generator().manual_seed(0)).tolist(), []
    for device in ("cpu", "cuda"):
        stream = Stream(random_model(2).float().to(device), name and get_method(name), 2, 24, 9, 6, 1)
        nll.append(torch.cat([piece.cpu() for piece in stream.score(ids)]))
    assert stream.replayed.graphs
    torch.testing.assert_close(nll[1], nll[0], atol=1e-3, rtol=0)
