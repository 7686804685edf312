"""What is fast in training changes no number: packed rows, joined weights, checkpoints, many processes."""

import argparse
import os
import random
import socket
import subprocess
import sys
from collections import Counter
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

import data
from minccm.config import read_config
from minccm.layout import collate, lay_out, pack
from minccm.mask import Parallel, predict
from minccm.methods import METHODS, get_method
from minccm.tokenizer import Tokenizer
from tests.conftest import ROOT, random_model
from tests.test_training import losses, micro, train  # noqa: F401  (micro is a fixture)
from train import Steps, held_out_batches

tokens = st.integers(3, 39)
EXAMPLES = sorted(map(str, (ROOT / "examples").glob("*.py")))
texts = st.lists(tokens, min_size=1, max_size=6)
samples = st.tuples(st.lists(st.lists(tokens, max_size=20), min_size=1, max_size=8), texts, texts)


@settings(deadline=None, derandomize=True)
@given(st.lists(st.integers(1, 300), min_size=1, max_size=80), st.integers(100, 1000))
def test_packing(lengths, budget):
    """Every sample once; no row over its budget, unless one sample is; and no two rows that would fit into one."""
    rows = pack(lengths, budget, multiple=16)
    assert sorted(index for row in rows for index in row) == list(range(len(lengths)))
    sums = sorted(sum(lengths[index] for index in row) for row in rows)
    assert all(sum(lengths[i] for i in row) < max(budget, max(lengths) + 1) for row in rows)
    assert len(rows) == 1 or sums[0] + sums[1] >= budget


def test_rows_of_like_samples_are_full():
    """128 samples of some 979 tokens: the padding of all rows to one length of few wastes less than a twentieth."""
    lengths = [979 - i % 7 for i in range(128)]
    rows = [sum(lengths[i] for i in row) for row in pack(lengths, 16384, 512)]
    assert len(rows) * (-(-(max(rows) + 1) // 512) * 512) < 1.05 * sum(lengths)


def test_steps_have_few_shapes():
    """40 steps of 128 dialogues of many lengths have few shapes: what is compiled for each is soon there."""
    draw, shapes = random.Random(0), set()
    for _ in range(40):
        layouts = []
        for _ in range(128):
            contexts = [[5] * draw.randint(3, 25) for _ in range(draw.randint(3, 16))]
            layouts.append(lay_out(get_method("ccm-merge"), 4, 40, contexts, [6] * 9, [7] * draw.randint(2, 20)))
        rows = pack([len(layout.tokens) for layout in layouts], 8192, 512)
        batch = collate([[layouts[i] for i in row] for row in rows], 512).split()[0]
        shapes.add((batch.tokens.shape, batch.slots.data.shape, batch.sizes))
    assert len(shapes) <= 4


@pytest.mark.parametrize("method", ["ccm-concat", "ccm-merge", "compressive"])
def test_settled_steps_have_one_shape(tiny, method):
    """A small model's steps, and its validation, are packed into rows of one shape, which a CUDA graph can replay."""
    tokenizer, config = Tokenizer(tiny), read_config(tiny)
    told = dict(batch=12, grow=0, steps=20, longest=None, questions=4, text_weight=0.01, pack=True, row_tokens=None)
    options = argparse.Namespace(
        **told, multiple=128, least=(0,) * 5, replay=True, shard=False, validate=30, data="dialog", n=4
    )
    steps = Steps(data.source("dialog", "train"), tokenizer, config, get_method(method), 4, options)
    steps.settle()
    batches = [batch for step in range(20) for batch in steps[step]]
    held_out = held_out_batches(tokenizer, config, get_method(method), options)
    shapes = [(batch.tokens.shape, batch.slots.data.shape, batch.sizes) for batch in batches + held_out]
    assert Counter(shapes).most_common(1)[0][1] >= 0.9 * len(shapes)  # all, but for a rare larger one
    used = sum(int((batch.columns.sample >= 0).sum()) for batch in batches)
    assert used > 0.6 * sum(batch.tokens.numel() for batch in batches)


@pytest.mark.parametrize("text_weight", [0.1, 0.0])
@pytest.mark.parametrize("name", ["full", "ccm-concat", "ccm-merge"])
def test_nothing_is_compiled_anew(name, text_weight, monkeypatch):
    """Steps of unlike samples, of which other places predict, go through what was compiled for the first of them."""
    from torch._dynamo.utils import counters

    flex = torch.cuda.is_available()  # whose kernels are for heads of 16 and more
    method, model, compiled = get_method(name), random_model(2, layers=4, head_dim=16 if flex else 4), []
    if not flex:  # FlexAttention trains on a GPU only; the rest is as it is there
        monkeypatch.setattr("minccm.mask.Parallel", lambda method, batch, dtype, *_: Parallel(method, batch, dtype))
    model = model.to("cuda" if flex else "cpu", torch.float32)
    for block in model.layers:
        block.compile(dynamic=False, backend="inductor" if flex else "eager")
    torch._dynamo.reset()
    draw, before = random.Random(0), counters["stats"]["unique_graphs"]
    for _ in range(4):
        texts = [[draw.choices(range(3, 39), k=draw.randint(19, 30)) for _ in range(draw.randint(3, 5))] for _ in "123"]
        inputs = [[6] * draw.randint(1, 9) for _ in texts]
        layouts = [lay_out(method, 2, 40, *text, [7, 2], text_weight) for text in zip(texts, inputs)]
        batch = collate([layouts], 512, apart=True).to("cuda" if flex else "cpu")
        assert bool(batch.first) == bool(batch.last) == (name != "full" and not text_weight)
        logits, rows = predict(model, method, batch, flex=True)
        assert (batch.weights.flatten()[rows] > 0).sum() == (batch.weights > 0).sum()
        (logits[:, 0] * batch.weights.flatten()[rows]).sum().backward()
        compiled.append(counters["stats"]["unique_graphs"] - before)
    assert 0 < compiled[0] <= 4 and compiled[1:] == compiled[:-1]  # and not for each layer


def gradients(model, method, n, batches, count):
    """The loss of `count` samples and the adapter's gradients, summed over batches."""
    model.zero_grad()
    total = 0.0
    for batch in batches:
        logits, rows = predict(model, method, batch)
        loss = F.cross_entropy(logits, batch.labels.flatten()[rows], reduction="sum") / count
        loss.backward()
        total += loss.item()
    return [torch.tensor(total)] + [
        torch.zeros_like(p) if p.grad is None else p.grad for p in model.adapter_state().values()
    ]


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    st.builds(get_method, st.sampled_from([*sorted(METHODS), *EXAMPLES]), st.booleans()),
    st.integers(1, 4),
    st.lists(samples, min_size=1, max_size=6),
    st.sampled_from([(0,) * 5, (200, 130, 9, 9, 0), (0, 0, 0, 0, 8)]),
    st.booleans(),
)
def test_packed_is_padded(method, n, batch, least, apart):
    """Rows of one shape, larger than need be, weights joined, blocks checkpointed: loss and gradients of one sample a
    row, within 1e-9."""
    model = random_model(n, learned=method.learned, layers=3)
    layouts = [lay_out(method, n, 40, *sample) for sample in batch]
    expected = gradients(model, method, n, [collate([[layout] for layout in layouts])], len(batch))
    rows = pack([len(layout.tokens) for layout in layouts], 200, 32)
    batches = collate([[layouts[i] for i in row] for row in rows], 32, least, apart).split()
    assert len({(b.tokens.shape, b.slots.data.shape, b.sizes) for b in batches}) == 1
    assert all(size >= at_least for size, at_least in zip(batches[0].sizes[:3], least))
    model.join_weights()
    model.checkpoint = True
    for one, other in zip(gradients(model, method, n, batches, len(batch)), expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("name", METHODS)
def test_what_is_left_out_changes_no_number(name):
    """Text that no memory comes before is read ahead without a gradient, and the last block is given no context's text:
    loss and gradients of the whole row within 1e-12. Plain LoRA has a part in all text; where text is pooled, or seen
    itself, the last block has to have it."""
    method, draw = get_method(name), random.Random(0)
    texts = [[draw.choices(range(3, 39), k=15) for _ in range(steps)] for steps in (1, 3, 5)]
    model = random_model(2, learned=method.learned, layers=3)
    layouts = [lay_out(method, 2, 40, contexts, [6, 7], [8, 9, 2]) for contexts in texts]
    parts, whole = collate([layouts], 8, apart=True), replace(collate([layouts], 8), last=None)
    assert bool(parts.first) == (method.conditional and method.reads)
    text = name in ("none", "full", "compressive") or name == "gist"  # all of whose contexts are the first
    assert bool(parts.last) == (not text) and abs(parts.count - whole.count) < 16
    for one, other in zip(*(gradients(model, method, 2, [batch], 3) for batch in (parts, whole)), strict=True):
        torch.testing.assert_close(one, other, atol=1e-12, rtol=1e-12)


def test_dropout_is_of_comp_rows():
    """In training LoRA's input is dropped at random, and so are its gradients: another draw, other numbers."""
    method, model = get_method("ccm-merge"), random_model(2)
    batch = collate([[lay_out(method, 2, 40, [[5, 6, 7], [8, 9]], [3, 4], [6, 2])]])
    for projection in model.projections():
        projection.dropout = 0.5
    draws = []
    for seed in (0, 0, 1):
        model.train()
        torch.manual_seed(seed)
        draws.append(gradients(model, method, 2, [batch], 1))
    model.eval()
    draws.append(gradients(model, method, 2, [batch], 1))
    assert all(torch.equal(*pair) for pair in zip(draws[0], draws[1]))
    assert not torch.equal(draws[0][1], draws[2][1]) and not torch.equal(draws[0][1], draws[3][1])


def free_port():
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        return held.getsockname()[1]


def test_two_processes_are_one(micro, tmp_path):  # noqa: F811
    """Two processes, each with half of the samples, have the losses of one; also when the base is spread over them."""
    settings = ["--dropout", "0", "--steps", "2", "--batch", "5"]
    command = [sys.executable, "train.py", "--model", micro, "--data", "persona", "--eval-samples", "0"]
    command += ["--device", "cpu", *settings]
    runs = []
    for name, more in (("whole", ()), ("sharded", ("--shard", "--checkpoint"))):
        port, one_thread = str(free_port()), os.environ | {"OMP_NUM_THREADS": "1"}
        for rank in "01":
            told = {
                "RANK": rank,
                "LOCAL_RANK": rank,
                "WORLD_SIZE": "2",
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": port,
            }
            words = list(map(str, [*command, *more, "--out", tmp_path / name]))
            runs.append(subprocess.Popen(words, cwd=ROOT, env=one_thread | told, stderr=subprocess.PIPE, text=True))
    train(micro, tmp_path / "one", *settings)
    for run in runs:
        _, errors = run.communicate(timeout=120)
        assert run.returncode == 0, errors
    for name in ("whole", "sharded"):
        assert losses(tmp_path / name) == pytest.approx(losses(tmp_path / "one"), abs=1e-5)
        assert (tmp_path / name / "adapter.safetensors").is_file()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="FlexAttention trains on a GPU only")
@pytest.mark.parametrize("name", ["ccm-concat", "ccm-merge"])
def test_compiled_on_a_gpu(name):
    """On a GPU in bf16, packed under FlexAttention and compiled: loss and gradients of the dense fp32 pass on a CPU."""
    from minccm.checkpoint import load_model

    method, n, results = get_method(name), 4, []
    ids = lambda length, seed: torch.randint(3, 500, (length,), generator=torch.Generator().manual_seed(seed)).tolist()
    layouts = [lay_out(method, n, 512, [ids(9, i)] * (i + 2), ids(5, i), [8, 9, 2]) for i in range(6)]
    for device in ("cpu", "cuda"):
        model = load_model("random:1m")
        torch.manual_seed(1)
        model.add_adapter(n, r=4, dropout=0.0)
        for tensor in model.adapter_state().values():
            torch.nn.init.normal_(tensor, std=0.1)
        model.to(device)
        if device == "cuda":
            for weight in model.parameters():
                weight.data = weight.data if weight.requires_grad else weight.data.bfloat16()
            model.join_weights()
            for block in model.layers:
                block.compile(dynamic=False)
        batch = collate([layouts], 128).to(device)
        logits, rows = predict(model, method, batch, flex=device == "cuda")
        losses = F.cross_entropy(logits.float(), batch.labels.flatten()[rows], reduction="none")
        loss = (losses * batch.weights.flatten()[rows]).sum() / batch.weights.sum()
        loss.backward()
        results.append([loss.detach().cpu()] + [p.grad.cpu() for p in model.adapter_state().values()])
    for one, other in zip(*results, strict=True):
        assert (one - other).norm() <= 0.05 * one.norm() + 1e-6


@pytest.mark.skipif(not torch.cuda.is_available(), reason="CUDA graphs are of a GPU")
@pytest.mark.parametrize("method", ["ccm-concat", "ccm-merge", "compressive"])
def test_replayed_on_a_gpu(micro, tmp_path, method):  # noqa: F811
    """Packed, compiled, and replayed by a CUDA graph: the losses of plain padded steps, also with distillation."""
    told = ["--device", "cuda", "--dtype", "fp32", "--dropout", "0", "--method", method, "--distill", "0.5"]
    for name, more in (("plain", "--no-compile"), ("replayed", "--compile")):
        train(micro, tmp_path / name, *told, more, "--steps", "12", "--validate", "8")
    assert losses(tmp_path / "replayed") == pytest.approx(losses(tmp_path / "plain"), abs=2e-3)
