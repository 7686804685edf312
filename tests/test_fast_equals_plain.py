"""Every fast path of training gives the numbers of the plain core: logits, losses and all gradients, in float64."""

import os
import random
import socket
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.attention.flex_attention import create_mask

from minccm.extra.curriculum import MixtureKV, take_turns
from minccm.extra.distill import teacher_logits
from minccm.extra.training import PlainStep
from minccm.fast.block_mask import attended_blocks, batch_blocks, batch_keys, block_mask
from minccm.fast.driver import PackedForward
from minccm.fast.fused import join_lora, join_weights, joined
from minccm.fast.packing import pack_rows, packed_attention_mask
from minccm.fast.rows import LoRARows, SelectRows
from minccm.fast.sparse_merge import SparseMerge
from minccm.fast.step import FastOptions, FastStep, parse_fast
from minccm.methods import TokenInfo, attention_mask, get_method, merge_weights
from minccm.parallel import ParallelKV, forward_parallel, merge_matrix
from minccm.sequence import build_sequence, pad_batch
from minccm.session import Session
from tests.conftest import ALL_METHODS, ROOT, random_model

STEP1 = replace(get_method("full"), name="step 1", conditional=False)
ALL_METHODS = ALL_METHODS | {"step 1": STEP1}
EXACT = dict(atol=1e-9, rtol=1e-9)

tokens = st.integers(3, 39)
texts = st.lists(tokens, min_size=1, max_size=6)
contexts = st.lists(st.lists(tokens, min_size=1, max_size=20), min_size=1, max_size=8)
samples = st.tuples(contexts, st.lists(st.tuples(texts, texts), min_size=1, max_size=2))
batches = st.lists(samples, min_size=1, max_size=6)
TRAINED = [method for name, method in ALL_METHODS.items() if name not in ("none", "full")]  # LoRA acts on some tokens
with_sink = lambda method, sink: replace(method, sink=sink)
methods = st.builds(with_sink, st.sampled_from([*ALL_METHODS.values()]), st.booleans())
trained_methods = st.builds(with_sink, st.sampled_from(TRAINED), st.booleans())
options = st.builds(FastOptions, **{name: st.booleans() for name in ("pack", "prune", "prefix", "checkpoint")})
gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


def sequences_of(method, n, batch, context_loss=0.0, vocab_size=40):
    return [build_sequence(method, n, vocab_size, *sample, context_loss=context_loss) for sample in batch]


def random_samples(count, seed=0, steps=(1, 8), vocab_size=40):
    draw = random.Random(seed)
    ids = lambda low, high: draw.choices(range(3, vocab_size - 1), k=draw.randint(low, high))
    return [([ids(2, 19) for _ in range(draw.randint(*steps))], [(ids(1, 6), ids(1, 6))]) for _ in range(count)]


def gradients_of(model):
    """The gradient of each trained parameter by name; 0 where there is none."""
    return {name: torch.zeros_like(p) if p.grad is None else p.grad for name, p in model.adapter_state().items()}


def plain(model, method, sequences, distill=0.0, mixture=None):
    """The loss and gradients of the plain core, all in float64: each sequence alone, over the weight of all."""
    model.zero_grad()
    total = 0.0
    weight = sum(float(x.loss_weights.double().sum()) for x in sequences)
    for batch in (pad_batch([x]) for x in sequences):
        at = batch.loss_weights > 0
        labels, weights = batch.tokens.roll(-1, dims=1)[at], batch.loss_weights[at]
        kv = MixtureKV(mixture, batch) if mixture else ParallelKV(method.bind(model), batch)
        logits = forward_parallel(model, method, batch, kv)
        loss = (F.cross_entropy(logits, labels, reduction="none") * weights).sum()
        if distill:
            teacher = teacher_logits(model, method, batch).log_softmax(-1)
            student = logits[weights >= 1].log_softmax(-1)
            loss = loss + distill * (teacher.exp() * (teacher - student)).sum()
        (loss / weight).backward()
        total += float(loss.detach()) / weight
    return {"loss": torch.tensor(total, dtype=torch.float64)} | gradients_of(model)


def loss_and_gradients(step, model, sequences, batches=None, mixture=None):
    """The same of a step."""
    model.zero_grad()
    weight = sum(float(x.loss_weights.double().sum()) for x in sequences)
    loss = step.backward(step.batches(sequences) if batches is None else batches, weight, mixture)
    return {"loss": loss.double()} | gradients_of(model)


def assert_equal(found, expected, **tolerance):
    assert found.keys() == expected.keys()
    for name, value in found.items():
        torch.testing.assert_close(
            value, expected[name], **(tolerance or EXACT), msg=lambda text, name=name: f"{name}: {text}"
        )


# ---------------------------------------------------------------------------------------------------- the whole step


def test_plain_step_is_the_core():
    """The plain step's loss and gradients are those of the core, to the rounding of its fp32 softmax."""
    mixture = [(0.3, get_method("ccm-merge")), (0.7, take_turns(get_method("ccm-merge"), 2, 2))]
    method, model = get_method("ccm-merge"), random_model(2)
    sequences = sequences_of(method, 2, random_samples(5), context_loss=0.1)
    step = PlainStep(model, method, max_tokens=100, distill=0.5)
    assert len(step.batches(sequences)) > 1
    found = loss_and_gradients(step, model, sequences, mixture=mixture)
    assert_equal(found, plain(model, method, sequences, 0.5, mixture), atol=1e-5, rtol=1e-5)


@settings(max_examples=80, deadline=None, derandomize=True)
@given(
    trained_methods,
    st.integers(1, 4),
    batches,
    options,
    st.sampled_from([0.0, 0.1]),
    st.sampled_from([(0,) * 5, (200, 130, 9, 9, 0), (0, 0, 0, 0, 8)]),
)
def test_fast_step_is_the_plain_step(method, n, batch, options, context_loss, min_sizes):
    """Packed or padded, pruned, with the prefix under no_grad, checkpointed, joined, in shapes larger than needed."""
    model = random_model(n, learned=method.learned, layers=3)
    sequences = sequences_of(method, n, batch, context_loss)
    expected = plain(model, method, sequences)
    step = FastStep(model, method, options, max_tokens=200)
    step.batches.pad_multiple, step.batches.min_sizes = 32, min_sizes
    packed = step.batches(sequences)
    if options.pack:
        assert len({(b.tokens.shape, b.slots.data.shape, b.sizes) for b in packed}) == 1
        assert all(size >= least for size, least in zip(packed[0].sizes[:3], min_sizes))
    assert step.token_count(packed) >= sum(map(len, sequences))
    assert_equal(loss_and_gradients(step, model, sequences, packed), expected)
    assert abs(step.held_out_loss(packed) - PlainStep(model, method).held_out_loss([pad_batch(sequences)])) < 1e-6


@settings(max_examples=40, deadline=None, derandomize=True)
@given(methods, st.integers(1, 4), batches, st.booleans(), st.booleans())
def test_packed_logits(method, n, batch, prune, prefix):
    """Each sample's logits in a packed row are those that it has alone."""
    model = random_model(n, learned=method.learned, layers=3)
    sequences = sequences_of(method, n, batch)
    packed = pack_rows(
        method, [sequences[::2], sequences[1::2]] if batch[1:] else [sequences], 8, prune=prune, prefix=prefix
    )
    with torch.no_grad():
        logits = PackedForward(model)(method, packed)[packed.loss_weights.flatten() > 0]
        alone = [forward_parallel(model, method, pad_batch([x])) for x in sequences[::2] + sequences[1::2]]
    torch.testing.assert_close(logits, torch.cat(alone), **EXACT)


@pytest.mark.parametrize("name", ALL_METHODS)
def test_every_part_that_is_left_out(name):
    """Each method leaves out the same parts: gradients of the prefix, and contexts' text in the last layer."""
    method, draw = ALL_METHODS[name], random.Random(0)
    batch = [([draw.choices(range(3, 39), k=15) for _ in range(steps)], [([6, 7], [8, 9, 2])]) for steps in (1, 3, 5)]
    model = random_model(2, learned=method.learned, layers=3)
    sequences = sequences_of(method, 2, batch)
    parts, whole = (pack_rows(method, [sequences], 8, prefix=on, prune=on) for on in (True, False))
    assert bool(parts.prefix) == (method.conditional and method.reads_context)
    needs_text = name in ("none", "full", "step 1", "compressive", "gist")  # the whole context of gist is its prefix
    assert bool(parts.last) == (not needs_text) and abs(parts.token_count - whole.token_count) < 16
    step = FastStep(model, method, FastOptions(), max_tokens=4096)
    found, expected = (loss_and_gradients(step, model, sequences, [packed]) for packed in (parts, whole))
    assert_equal(found, expected, atol=1e-12, rtol=1e-12)


def test_a_last_layer_that_needs_the_prefix():
    """A method whose questions attend to the first context's text: the last layer is not pruned then."""
    method = replace(get_method("ccm-concat"), attends=lambda q, k: k.is_comp | (k.is_text & (k.step == 0)))
    model = random_model(2, layers=3)
    sequences = sequences_of(method, 2, random_samples(3, steps=(5, 8)))
    step = FastStep(model, method, FastOptions(pack=True, prune=True, prefix=True), max_tokens=4096)
    (packed,) = step.batches(sequences)
    assert packed.prefix and not packed.last
    expected = plain(model, method, sequences)
    assert_equal(loss_and_gradients(step, model, sequences, [packed]), expected)


@pytest.mark.parametrize("pack", [False, True])
@pytest.mark.parametrize("name", ["ccm-concat", "ccm-merge", "compressive", "decay", "two-level", "step 1"])
def test_distillation(name, pack):
    """The loss with a teacher, whose text attends to all text; on outputs only, and with other text of weight 0.1."""
    method, batch = ALL_METHODS[name], random_samples(5, steps=(2, 7))
    model = random_model(2, learned=method.learned, layers=3)
    for context_loss in (0.0, 0.1):
        sequences = sequences_of(method, 2, batch, context_loss)
        expected = plain(model, method, sequences, distill=0.7)
        without = plain(model, method, sequences)
        assert abs(float(expected["loss"] - without["loss"])) > 1e-3
        step = FastStep(model, method, FastOptions(pack=pack, prune=True, prefix=pack), max_tokens=200, distill=0.7)
        for step.chunked in (False, True):  # for a small and for a large vocabulary
            assert_equal(loss_and_gradients(step, model, sequences), expected)


@pytest.mark.parametrize("pack", [False, True])
def test_a_mixture_of_merge_weights(pack):
    """A merge curriculum merges by a mixture of two methods' weights, which can differ by slot."""
    method, model = get_method("ccm-merge"), random_model(3, layers=3)
    mixture = [(0.3, method), (0.7, take_turns(method, 3, 3))]
    sequences = sequences_of(method, 3, random_samples(5))
    expected = plain(model, method, sequences, mixture=mixture)
    own = plain(model, method, sequences)
    assert abs(float(expected["loss"] - own["loss"])) > 1e-6
    step = FastStep(model, method, FastOptions(pack=pack, prune=True, prefix=pack), max_tokens=200)
    assert_equal(loss_and_gradients(step, model, sequences, mixture=mixture), expected)
    alone = loss_and_gradients(step, model, sequences, mixture=[(1.0, method)])
    assert_equal(alone, own)


def test_dropout_of_lora_inputs():
    """In training, LoRA's inputs are dropped at random: the same seed gives the same gradients, another one others."""
    method, model = get_method("ccm-merge"), random_model(2)
    sequences = sequences_of(method, 2, [([[5, 6, 7], [8, 9]], [([3, 4], [6, 2])])])
    step = FastStep(model, method, FastOptions(pack=True))
    for projection in model.projections():
        projection.dropout = 0.5
    found = []
    for seed, training in ((0, True), (0, True), (1, True), (0, False)):
        model.train(training)
        torch.manual_seed(seed)
        found.append(loss_and_gradients(step, model, sequences))
    name = "layers.0.self_attn.q_proj.lora_A"
    assert_equal(found[0], found[1], atol=0, rtol=0)
    assert not torch.equal(found[0][name], found[2][name]) and not torch.equal(found[0][name], found[3][name])


@pytest.mark.parametrize("context_loss", [0.1, 0.0])
@pytest.mark.parametrize("name", ["step 1", "ccm-concat", "ccm-merge"])
def test_compiled_once(name, context_loss):
    """Steps of unlike samples run the graphs of the first step, and all layers share it."""
    from torch._dynamo.utils import counters

    device = "cuda" if torch.cuda.is_available() else "cpu"  # on a CPU without kernels, and under a dense mask
    method, model, graphs = ALL_METHODS[name], random_model(2, layers=4, head_dim=16), []
    model = model.to(device, torch.float32)
    step = FastStep(model, method, FastOptions(pack=True, prune=True, prefix=True), max_tokens=512)
    step.batches.pad_multiple, step.batches.min_sizes = 512, (0, 256, 0, 0, 0)
    torch._dynamo.reset()
    backend, before = "inductor" if step.flex else "eager", counters["stats"]["unique_graphs"]
    for function in ("block", "prefix_block"):
        compiled = torch.compile(getattr(step.forward, function), dynamic=False, backend=backend)
        setattr(step.forward, function, compiled)
    for seed in range(4):
        batch = random_samples(3, seed, steps=(4, 6))
        sequences = sequences_of(method, 2, batch, context_loss)
        packed = step.batches(sequences)
        assert len(packed) == 1 and bool(packed[0].prefix) == bool(packed[0].last) == (
            method is not STEP1 and not context_loss
        )
        loss_and_gradients(step, model, sequences, packed)
        graphs.append(counters["stats"]["unique_graphs"] - before)
    assert 0 < graphs[0] <= 4 and graphs[1:] == graphs[:-1]


# ------------------------------------------------------------------------------------------------------- its parts


@settings(max_examples=40, deadline=None, derandomize=True)
@given(methods, st.integers(1, 4), batches, st.booleans())
def test_mask_of_a_packed_row(method, n, batch, prefix):
    """Within a sample, a packed row has the mask of the plain core. Between samples, nothing is attended to."""
    sequences = sequences_of(method, n, batch)
    packed = pack_rows(method, [sequences])
    keys = batch_keys(method, packed)
    mask = packed_attention_mask(method, packed.info, keys)[0]
    expected = torch.zeros_like(mask)
    for g, x in enumerate(sequences):
        own = attention_mask(method, x.info, TokenInfo.cat([x.info, x.slots]))
        rows = (packed.info.document[0] == g).nonzero()[:, 0]
        columns = [
            (keys.info.order[0] == k.order)
            & (keys.info.kind[0] == k.kind)
            & (keys.info.slot[0] == k.slot)
            & (keys.info.step[0] == k.step)
            & (keys.document[0] == g)
            for k in map(TokenInfo.cat([x.info, x.slots]).__getitem__, range(own.shape[1]))
        ]
        columns = torch.stack([column.nonzero()[0, 0] for column in columns])
        expected[rows[:, None], columns] = own
    padding = (packed.info.document[0] < 0).nonzero()[:, 0]
    expected[padding, padding] = True
    assert torch.equal(mask, expected)


def in_blocks(mask):
    """A mask, bool (B, N, K), filled up to blocks of 128: (B, N / 128, 128, K / 128, 128)."""
    mask = F.pad(mask, (0, -mask.shape[2] % 128, 0, -mask.shape[1] % 128))
    return mask.unflatten(2, (-1, 128)).unflatten(1, (-1, 128))


@settings(max_examples=40, deadline=None, derandomize=True)
@given(methods, st.integers(1, 4), batches, st.booleans(), st.booleans())
def test_block_mask_is_the_dense_mask(method, n, batch, packed, prefix):
    """FlexAttention's mask of every pair, and of every block, is that of the dense mask; for prefix and last, too."""
    sequences = sequences_of(method, n, batch)
    whole = pack_rows(method, [sequences] if packed else [[x] for x in sequences], prefix=prefix)
    for part, blocks in zip((whole, whole.prefix, whole.last), batch_blocks(method, whole)):
        if part is None:
            assert blocks is None
            continue
        keys = batch_keys(method, part)
        dense = packed_attention_mask(method, part.info, keys)
        block = block_mask(part.info, keys, blocks)
        shape = (len(dense), None, *dense.shape[1:])
        assert torch.equal(create_mask(block.mask_mod, *shape, device="cpu")[:, 0], dense)
        assert torch.equal(block.to_dense()[:, 0].bool(), in_blocks(dense).any(4).any(2))


@pytest.mark.parametrize("name", ALL_METHODS)
def test_only_attended_blocks_are_computed(name):
    """In a packed row that ends in padding, a kernel computes the blocks with some attended pair, and no others."""
    method = ALL_METHODS[name]
    sequences = sequences_of(method, 4, random_samples(40, steps=(1, 9)))
    whole = pack_rows(method, [sequences], 512, prefix=True)
    assert int((whole.info.document < 0).sum()) > 1
    for part in filter(None, (whole, whole.prefix, whole.last)):
        keys = batch_keys(method, part)
        mask = in_blocks(packed_attention_mask(method, part.info, keys))
        block = block_mask(part.info, keys, attended_blocks(method, part.info, keys))
        assert torch.equal(block.to_dense()[:, 0].bool(), mask.any(4).any(2))
        assert int(block.full_kv_num_blocks.sum()) == int(mask.all(4).all(2).sum())


@pytest.mark.parametrize("name", ["full", "ccm-concat", "ccm-merge"])
def test_padding_costs_little(name):
    """A block of padding attends to itself only, and no block attends to the padding of the slots."""
    method = get_method(name)
    longer, shorter = sequences_of(method, 4, [([[5] * 9] * steps, [([5] * 9, [6, 2])]) for steps in (8, 2)])
    packed = pack_rows(method, [[longer]], 1024)
    keys = batch_keys(method, packed)
    blocks = block_mask(packed.info, keys, attended_blocks(method, packed.info, keys)).to_dense()[0, 0].bool()
    assert blocks.shape[0] == 8 and len(longer) < 128
    assert torch.equal(blocks[1:, :8], torch.eye(8, dtype=torch.bool)[1:]) and not blocks[1:, 8:].any()
    packed = pack_rows(method, [[longer, shorter]], 128)
    unused = ~packed.slots.info.is_slot
    assert unused.any() or name != "ccm-merge"
    attended = packed_attention_mask(method, packed.info, packed.slots)
    assert not attended[unused[:, None].expand_as(attended)].any()


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.sampled_from([m for m in ALL_METHODS.values() if m.merge_rate]), st.integers(1, 4), batches, st.booleans())
def test_sparse_merge_is_the_merge_matrix(method, n, batch, packed):
    """P x without P: each slot of each sample holds the same weighted mean."""
    model = random_model(n, learned=method.learned)
    sequences, method = sequences_of(method, n, batch), method.bind(model)
    rows = [sequences] if packed else [[x] for x in sequences]
    whole = pack_rows(method, rows, 8 if packed else 1)
    if not len(whole.slots):
        return
    x = torch.randn(len(rows), 2, whole.tokens.shape[1], 3, dtype=torch.float64)
    weights = merge_weights(method, whole.merge_index.shape[2])
    slots = SparseMerge(whole.merge_index, weights, whole.tokens.shape[1] - 1, x.dtype)(x)
    for i, row in enumerate(rows):
        start = 0
        for g, sequence in enumerate(row):
            end = start + len(sequence)
            P = (
                merge_matrix(method, sequence.info, sequence.slots)
                if len(sequence.slots)
                else torch.zeros(0, end - start)
            )
            mine = (whole.slots.document[i] == g) & whole.slots.info.is_slot[i]
            torch.testing.assert_close(slots[i, :, mine], P.to(x.dtype) @ x[i, :, start:end], **EXACT)
            start = end


@pytest.mark.parametrize("dropout", [False, True])
@pytest.mark.parametrize("sizes", [[3], [3, 2, 2]])
def test_lora_on_rows(sizes, dropout):
    """y = W x + scale B A (dropout x) on some rows, for each part, and its gradients in x, A and B by autograd."""
    torch.manual_seed(0)
    make = lambda *shape: torch.randn(*shape, dtype=torch.float64)
    index, scale, r, width, count = torch.tensor([1, 2, 5]), 1.5, 2, 4, 7
    x, W, A, B = make(count, width), make(sum(sizes), width), make(len(sizes) * r, width), make(sum(sizes), r)
    factors = torch.tensor([0.0, 2.0])[torch.randint(2, (len(index), width))].double() if dropout else None
    trained = [tensor.requires_grad_() for tensor in (x, A, B)]

    def formula(x, A, B):
        kept = x[index] if factors is None else x[index] * factors
        parts = [kept @ A_part.T @ B_part.T for A_part, B_part in zip(A.split(r), B.split(sizes))]
        return F.linear(x, W).index_add(0, index, scale * torch.cat(parts, 1))

    direction, found = make(count, sum(sizes)), []
    for run in (lambda x, A, B: LoRARows.apply(x, W, index, factors, scale, sizes, A, B), formula):
        y = run(x, A, B)
        found.append([y, *torch.autograd.grad((y * direction).sum(), trained)])
    for got, expected in zip(*found):
        torch.testing.assert_close(got, expected, atol=1e-12, rtol=1e-12)


def test_selected_rows():
    """They are those of indexing, and the other rows get no gradient."""
    x, index = torch.randn(6, 2, dtype=torch.float64, requires_grad=True), torch.tensor([4, 0])
    assert torch.equal(SelectRows.apply(x, index), x[index])
    (gradient,) = torch.autograd.grad(SelectRows.apply(x, index).sum(), x)
    assert gradient.sum(1).tolist() == [2, 0, 0, 0, 2, 0]


def test_joined_weights():
    """Joined weights and LoRA are slices of one tensor: the model computes the same, also after they change in place.

    They stay where they are when they are joined again, since graphs read them there; a new adapter is joined again.
    """
    model, method, read = random_model(2), get_method("ccm-merge"), []
    other = random_model(2)

    def keys(model):
        session = Session(model, method, 2)
        with torch.no_grad():
            session.read([1, 5, 6, 7])
        return session.memory.keys

    change = lambda model: [p.data.mul_(2) for p in model.adapter_state().values()]
    for act in (lambda model: None, join_weights, join_lora, change):
        act(model)
        read.append(keys(model))
    change(other)
    torch.testing.assert_close(torch.stack(read), torch.stack([read[0]] * 3 + [keys(other)]), atol=1e-12, rtol=1e-12)
    attention, mlp = model.layers[0].self_attn, model.layers[0].mlp
    places = lambda: [x.data_ptr() for x in (attention.qkv, mlp.gate_up, *attention.qkv_lora, *attention.o_lora)]
    before = places()
    join_weights(model)
    join_lora(model)
    assert places() == before and joined(attention, "no such") is None
    old = attention.qkv_lora
    model.add_adapter(2)
    join_lora(model)
    assert attention.qkv_lora[0] is not old[0]


# --------------------------------------------------------------------------------------------------- several processes

WORKER = """
import sys, torch
from minccm.fast import distributed
from minccm.fast.step import FastStep, parse_fast
from minccm.extra.training import PlainStep
from tests.test_fast_equals_plain import get_method, random_model, random_samples, sequences_of
torch.set_num_threads(1)
distributed.start()
method, model = get_method("ccm-merge"), random_model(2, layers=3)
sequences = sequences_of(method, 2, random_samples(5))
weight = distributed.all_reduce(sum(float(x.loss_weights.sum()) for x in sequences[distributed.RANK :: 2]))
options = parse_fast(sys.argv[1], torch.device("cpu"), 0)
if options:
    distributed.shard(model, torch.device("cpu"))
step = FastStep(model, method, options, max_tokens=90) if options else PlainStep(model, method, max_tokens=90)
batches = step.batches(sequences[distributed.RANK :: 2])
assert distributed.IS_MAIN == (distributed.RANK == 0)
loss = step.backward(batches, weight)
trained = model.adapter_state()
loss = distributed.sum_gradients(list(trained.values()), loss)
held_out = step.held_out_loss(batches)
if distributed.IS_MAIN:
    numbers = {"loss": loss.double(), "held out": torch.tensor(held_out)}
    torch.save(numbers | {name: p.grad for name, p in trained.items()}, sys.argv[2])
distributed.stop()
"""


def free_port():
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        return str(held.getsockname()[1])


@pytest.mark.parametrize("fast", ["off", "fsdp,checkpoint,pack"])
def test_two_processes_are_one(fast, tmp_path):
    """Two processes, each with some of the samples, have the loss and gradients of one; also with a sharded base."""
    method, model = get_method("ccm-merge"), random_model(2, layers=3)
    sequences = sequences_of(method, 2, random_samples(5))
    expected = plain(model, method, sequences)
    world = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port(), "OMP_NUM_THREADS": "1"}
    runs = []
    for rank in "01":
        environment = os.environ | world | {"RANK": rank, "LOCAL_RANK": rank}
        command = [sys.executable, "-c", WORKER, fast, str(tmp_path / "found.pt")]
        runs.append(subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True))
    for run in runs:
        _, errors = run.communicate(timeout=120)
        assert run.returncode == 0, errors
    found = torch.load(tmp_path / "found.pt", weights_only=True)
    batches = PlainStep(model, method, max_tokens=4096).batches(sequences[::2])
    held_out = torch.tensor(PlainStep(model, method).held_out_loss(batches))
    assert_equal(found, expected | {"held out": held_out}, atol=1e-5, rtol=1e-5)


# ----------------------------------------------------------------------------------------------------------- on a GPU


def gpu_model(method, n, dtype):
    """A model of random weights on the GPU, in dtype, with an fp32 adapter."""
    from minccm.io.weights import load_model

    model = load_model("random:1m", dtype=torch.float32)
    torch.manual_seed(1)
    model.add_adapter(n, r=4, dropout=0.0, learned=method.learned)
    for tensor in model.adapter_state().values():
        torch.nn.init.normal_(tensor, std=0.1)
    model.to("cuda")
    for p in model.parameters():
        p.data = p.data if p.requires_grad else p.data.to(dtype)
    return model


@gpu
@pytest.mark.parametrize("name", [name for name in ALL_METHODS if name not in ("none", "full")])
@pytest.mark.parametrize("fast", ["compile", "compile,no-replay", "auto"])
def test_fast_step_on_a_gpu(name, fast):
    """In fp32 on a GPU, packed, compiled and replayed: the plain step's loss and gradients, within 1e-2."""
    method = ALL_METHODS[name]
    model = gpu_model(method, 4, torch.float32)
    sequences = sequences_of(method, 4, random_samples(12, vocab_size=512), vocab_size=512)
    expected = loss_and_gradients(PlainStep(model, method), model, sequences)
    step = FastStep(model, method, parse_fast(fast, torch.device("cuda"), 1e6))
    assert step.options.replay == (fast != "compile,no-replay" and not method.learned)
    step.fix_shapes([sequences])
    for _ in range(5):  # the third call is captured, and later ones are replayed
        found = loss_and_gradients(step, model, sequences)
    for key, value in found.items():
        assert (value - expected[key]).norm() <= 1e-2 * expected[key].norm() + 1e-6, key


@gpu
@pytest.mark.parametrize("name", ["ccm-concat", "ccm-merge", "compressive", "step 1"])
def test_fast_step_in_bf16(name):
    """In bf16 on a GPU, with distillation: the plain step's loss and gradients in fp32, to bf16 rounding."""
    method, found = ALL_METHODS[name], []
    sequences = sequences_of(method, 4, random_samples(12, vocab_size=512), vocab_size=512)
    for dtype, fast in ((torch.float32, "off"), (torch.bfloat16, "compile")):
        model = gpu_model(method, 4, dtype)
        options = parse_fast(fast, torch.device("cuda"), 1e6)
        step = FastStep(model, method, options, distill=0.5) if options else PlainStep(model, method, distill=0.5)
        step.chunked = True  # as for a large vocabulary
        step.fix_shapes([sequences])
        for _ in range(4):
            result = loss_and_gradients(step, model, sequences)
        found.append(result)
    for key, expected in found[0].items():
        assert (found[1][key].float() - expected).norm() <= 0.05 * expected.norm() + 1e-6, key


@gpu
@pytest.mark.parametrize("name", ALL_METHODS)
def test_flex_attention_on_a_gpu(name):
    """A packed row under FlexAttention has the logits and gradients of the dense mask."""
    method = ALL_METHODS[name]
    model = gpu_model(method, 2, torch.float32)
    packed = pack_rows(method, [sequences_of(method, 2, random_samples(9))], 128, prefix=True).to("cuda")
    found = []
    for flex in (False, True):
        model.zero_grad()
        logits = PackedForward(model, flex=flex)(method, packed)[packed.loss_weights.flatten() > 0]
        logits.float().square().mean().backward()
        found.append([logits] + [p.grad for p in model.adapter_state().values() if p.grad is not None])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, atol=1e-3, rtol=1e-2)
