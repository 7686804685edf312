"""Packing wastes little and has few shapes; and which fast paths a command line switches on."""

import random
from collections import Counter
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from minccm.fast.packing import fill_rows, pack_rows
from minccm.fast.step import FastOptions, FastStep, parse_fast
from minccm.methods import get_method
from minccm.sequence import build_sequence
from tests.conftest import random_model

CPU, GPU = torch.device("cpu"), torch.device("cuda")


@settings(deadline=None, derandomize=True)
@given(st.lists(st.integers(1, 300), min_size=1, max_size=80), st.integers(100, 1000))
def test_fill_rows(lengths, max_tokens):
    """Every sequence once; no row too long, unless one sequence is; and no two rows that would fit into one."""
    rows = fill_rows(lengths, max_tokens, pad_multiple=16)
    assert sorted(index for row in rows for index in row) == list(range(len(lengths)))
    sums = sorted(sum(lengths[index] for index in row) for row in rows)
    assert all(total < max(max_tokens, max(lengths) + 1) for total in sums)
    assert len(rows) == 1 or sums[0] + sums[1] >= max_tokens


def test_rows_of_like_sequences_are_full():
    """128 sequences of about 979 tokens: padding all rows to one length of a few wastes less than 5%."""
    lengths = [979 - i % 7 for i in range(128)]
    rows = [sum(lengths[i] for i in row) for row in fill_rows(lengths, 16384, 512)]
    assert len(rows) * (-(-(max(rows) + 1) // 512) * 512) < 1.05 * sum(lengths)


def dialogues(method, n, count, seed=0, turns=(3, 16)):
    draw = random.Random(seed)
    samples = [[[5] * draw.randint(3, 25) for _ in range(draw.randint(*turns))] for _ in range(count)]
    outputs = [[7] * draw.randint(2, 20) for _ in samples]
    return [build_sequence(method, n, 40, contexts, [([6] * 9, output)]) for contexts, output in zip(samples, outputs)]


def shapes_of(batch):
    return batch.tokens.shape, batch.slots.data.shape, batch.sizes


def test_few_shapes():
    """15 steps of 128 dialogues of many lengths have few shapes, so compilation soon ends."""
    method, shapes = get_method("ccm-merge"), set()
    for seed in range(15):
        sequences = dialogues(method, 4, 128, seed)
        rows = fill_rows([len(x) for x in sequences], 8192, 512)
        shapes.add(shapes_of(pack_rows(method, [[sequences[i] for i in row] for row in rows], 512).split()[0]))
    assert len(shapes) <= 6


@pytest.mark.parametrize("name", ["ccm-concat", "ccm-merge", "compressive"])
def test_fixed_shapes(name):
    """Steps that a graph replays have one shape, and waste less than 40% of their tokens."""
    method = get_method(name)
    step = FastStep(random_model(4), method, FastOptions(pack=True, prune=True))
    step.options = step.batches.options = replace(step.options, replay=True)  # as on a GPU
    step.batches.max_tokens, step.largest = None, 65536
    steps = [dialogues(method, 4, 12, seed) for seed in range(20)]
    step.fix_shapes(steps[-8:])
    batches = [batch for sequences in steps for batch in step.batches(sequences)]
    assert Counter(map(shapes_of, batches)).most_common(1)[0][1] >= 0.8 * len(batches)  # all but rare larger ones
    assert sum(len(x) for sequences in steps for x in sequences) > 0.6 * step.token_count(batches)


def test_what_is_switched_on():
    """The last layer is pruned; on a GPU samples are packed, and the blocks compiled or the step replayed."""
    assert parse_fast("off", CPU, 7e9) is parse_fast("off", GPU, 7e9) is None
    assert parse_fast("auto", CPU, 1e6) == parse_fast("auto", CPU, 7e9) == FastOptions(prune=True)
    small, large = parse_fast("auto", GPU, 1e8), parse_fast("auto", GPU, 7e9)
    assert small == FastOptions(pack=True, prune=True, prefix=True, replay=True)
    assert large == FastOptions(compile=True, pack=True, prune=True, prefix=True)
    assert parse_fast("compile", GPU, 1e8) == replace(large, replay=True)
    assert parse_fast("no-compile", GPU, 7e9) == FastOptions(prune=True)
    assert parse_fast("auto,checkpoint,fsdp", GPU, 7e9) == replace(large, checkpoint=True, fsdp=True)
    assert parse_fast("pack", CPU, 1e6) == FastOptions(pack=True, prune=True, prefix=True)
    for text in ("", "turbo", "compile,", "off,compile", "no-no-pack"):
        with pytest.raises(ValueError, match="choose auto, off, or names"):
            parse_fast(text, GPU, 1e8)


def test_what_does_not_fit_together():
    """Replay needs a GPU. FlexAttention has no backward pass on a CPU. A base model that trains is not joined."""
    model, method = random_model(2), get_method("ccm-concat")
    step = FastStep(model, method, FastOptions(pack=True, replay=True, prefix=True))
    assert not step.options.replay and not step.flex and step.options.prefix
    assert step.batches.max_tokens == 2048 and hasattr(model.layers[0].self_attn, "qkv")
    base = random_model(0, adapter=False)
    FastStep(base, get_method("full"), FastOptions(pack=True))
    assert not hasattr(base.layers[0].self_attn, "qkv")
