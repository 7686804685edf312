"""Conversations in one batch of fixed buffers give the same logits, memory and outputs as each alone, to rounding."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from minccm.fast.conversations import Conversations, FastSession
from minccm.fast.fused import join_lora, join_weights
from minccm.methods import PAD, get_method
from minccm.session import Session
from tests.conftest import ALL_METHODS, random_model

texts = st.lists(st.integers(3, 39), min_size=1, max_size=9)
turns = st.one_of(st.none(), texts)
talks = st.lists(st.lists(turns, min_size=0, max_size=5), min_size=1, max_size=3)
methods = st.builds(
    lambda name, sink: replace(ALL_METHODS[name], sink=sink), st.sampled_from(sorted(ALL_METHODS)), st.booleans()
)


def memory_of(batch, i):
    """TokenInfo of conversation i, and its keys and values, in the order of a session."""
    info = batch.info[i]
    places = (info.kind != PAD).nonzero()[:, 0]
    places = places[info.order[places].argsort(stable=True)]
    return info[places], torch.stack([buffer[:, i][:, :, places] for buffer in batch.exact])


def check_memory(batch, i, memory, tolerance):
    """Conversation i holds the same pairs as a session's memory."""
    info, pairs = memory_of(batch, i)
    order = memory.info.order.argsort(stable=True)
    for name in ("kind", "step", "slot", "order", "question"):
        assert torch.equal(getattr(info, name), getattr(memory.info, name)[order]), name
    expected = torch.stack([memory.keys, memory.values])[:, :, :, order]
    torch.testing.assert_close(pairs, expected, atol=tolerance, rtol=tolerance)


def test_joined_lora():
    """A and B of q, k, v in one product: the same memory, and still the same after they have changed in place."""
    model, method, read = random_model(2), get_method("ccm-merge"), []
    join_weights(model)

    def double():
        for parameter in model.adapter_state().values():
            parameter.data.mul_(2)

    for change in (lambda: None, lambda: join_lora(model), double):
        change()
        batch = Conversations(model, method, 2, 1, 4, 8)
        batch.read([[1, 5, 6, 7]])
        read.append(memory_of(batch, 0)[1])
        with torch.no_grad():
            session = Session(model, method, 2)
            session.read([1, 5, 6, 7])
        check_memory(batch, 0, session.memory, 1e-12)
    changed = random_model(2)
    for tensor in changed.adapter_state().values():
        tensor.data.mul_(2)
    with torch.no_grad():
        session = Session(changed, method, 2)
        session.read([1, 5, 6, 7])
    torch.testing.assert_close(read[1], read[0], atol=1e-12, rtol=1e-12)
    expected = torch.stack([session.memory.keys, session.memory.values])
    torch.testing.assert_close(read[2], expected, atol=1e-12, rtol=1e-12)


def test_weights_stay_where_graphs_read_them():
    """Joined weights and adapters do not move when the next conversations begin; a new adapter is joined again."""
    model = random_model(2)

    def addresses():
        joined = [
            (block.self_attn.qkv, block.mlp.gate_up, *block.self_attn.qkv_lora, *block.self_attn.o_lora)
            for block in model.layers
        ]
        return [tensor.data_ptr() for tensors in joined for tensor in tensors]

    seen = []
    for _ in range(2):
        FastSession(model, get_method("ccm-concat"), 2)
        Conversations(model, get_method("ccm-concat"), 2, 1, 4, 4)
        seen.append(addresses())
    assert seen[0] == seen[1]
    old = model.layers[0].self_attn.qkv_lora
    model.add_adapter(2)
    join_lora(model)
    assert model.layers[0].self_attn.qkv_lora[0] is not old[0]


@settings(max_examples=60, deadline=None, derandomize=True)
@given(methods, st.integers(1, 4), talks, texts, texts)
@torch.no_grad()
def test_a_batch_is_each_alone(method, n, talks, input, other):
    """For every method, with conversations at different time steps: logits from the memory, and the memory itself."""
    model = random_model(n, learned=method.learned)
    sessions = [Session(model, method, n) for _ in talks]
    batch = Conversations(model, method, n, len(talks), pairs=60, turn=9, output=4)
    for turn in range(max(map(len, talks))):
        contexts = [talk[turn] if turn < len(talk) else None for talk in talks]
        batch.read(contexts)
        for session, context in zip(sessions, contexts):
            if context is not None:
                session.read(context)
    inputs = [(input, other)[i % 2] for i in range(len(talks))]
    got = batch.logits(inputs).clone()
    for i, (session, text) in enumerate(zip(sessions, inputs)):
        torch.testing.assert_close(got[i], session.logits(text)[-1], atol=1e-9, rtol=1e-9)
    outputs = batch.generate(inputs, stop_ids=())
    for i, (session, text) in enumerate(zip(sessions, inputs)):
        assert outputs[i] == list(session.generate(text, 4, stop_ids=()))
        check_memory(batch, i, session.memory, 1e-9)


@pytest.mark.parametrize("name", ["ccm-merge", "ccm-merge-ema", "two-level", "compressive"])
@torch.no_grad()
def test_merged_memory_is_fp32(name):
    """A model in bf16: the memory is a session's, in fp32, to the rounding of a forward pass in bf16."""
    method, model, n = ALL_METHODS[name], random_model(2, torch.bfloat16), 2
    batch, session = Conversations(model, method, n, 1, pairs=60, turn=4), Session(model, method, n)
    for context in torch.randint(3, 40, (20, 4), generator=torch.Generator().manual_seed(0)).tolist():
        batch.read([context])
        session.read(context)
        info, pairs = memory_of(batch, 0)
        expected = torch.stack([session.memory.keys, session.memory.values])
        expected = expected[:, :, :, session.memory.info.order.argsort(stable=True)]
        assert pairs.dtype == expected.dtype == torch.float32
        assert ((pairs - expected).norm() / expected.norm()).item() < 2**-7
        assert torch.equal(batch.keys[:, 0][:, :, :60], batch.exact[0][:, 0, :, :60].bfloat16())
        batch.put(session.memory)  # so that the differences do not add up
        check_memory(batch, 0, session.memory, 0)


def test_running_mean_is_exact():
    """After 1,000 steps of a bf16 model the slots are an average in float64 of all COMP tokens, within 1e-5."""
    batch = Conversations(random_model(2, torch.bfloat16), get_method("ccm-merge"), 2, 2, pairs=4, turn=3)
    total = 0.0
    for context in torch.randint(3, 40, (1000, 3), generator=torch.Generator().manual_seed(0)).tolist():
        batch.read([context, context[:2]])
        pairs = torch.stack([batch.keys, batch.values]).double()  # (2, layers, 2, kv_heads, C, head_dim)
        first, second = pairs[:, :, 0, :, 7:9], pairs[:, :, 1, :, 6:8]  # COMP tokens come after 4 pairs and the text
        total = total + torch.stack([first, second])
    for i in range(2):
        torch.testing.assert_close(memory_of(batch, i)[1].double(), total[i] / 1000, atol=1e-5, rtol=0)


def test_a_place_is_used_again():
    """A new conversation in a used place knows nothing of the one before; a full memory is an error."""
    model, method = random_model(2), get_method("ccm-concat")
    batch = Conversations(model, method, 2, batch=2, pairs=4, turn=6)
    for _ in range(2):
        batch.read([[1, 5, 6], [7, 8, 9, 10]])
    with pytest.raises(ValueError, match="4 pairs"):
        batch.read([[5], None])
    batch.reset([0])
    batch.read([[9, 9, 4], None])
    fresh = Session(model, method, 2)
    fresh.read([9, 9, 4])
    torch.testing.assert_close(batch.logits([[3, 4], [5]])[0], fresh.logits([3, 4])[-1], atol=1e-9, rtol=1e-9)
    with pytest.raises(ValueError, match="exceeds a turn"):
        batch.read([[5] * 7, None])


@settings(max_examples=40, deadline=None, derandomize=True)
@given(methods, st.lists(texts, max_size=4), st.lists(texts, min_size=1, max_size=3), st.sampled_from([0.0, 1.0]))
@torch.no_grad()
def test_a_session_that_generates_from_buffers(method, contexts, inputs, temperature):
    """The same outputs as a Session's, drawn or not, from buffers that grow when needed; and the same memory."""
    model, outputs = random_model(2, learned=method.learned), []
    for kind in (Session, FastSession):
        session = kind(model, method, 2)
        session.sizes = 1, 1, 1
        outputs.append([])
        for i, ids in enumerate(inputs):
            for context in contexts:
                session.read(context)
            generator = torch.Generator().manual_seed(i)
            outputs[-1].append(list(session.generate(ids, 3 + i, temperature=temperature, generator=generator)))
            next(session.generate(ids), None)  # an output that is stopped early changes nothing
        outputs[-1].append(session.memory.keys)
        assert len(session.fresh().memory) == 0
    assert outputs[0][:-1] == outputs[1][:-1]
    torch.testing.assert_close(outputs[1][-1], outputs[0][-1], atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("kind", [Session, FastSession])
@torch.no_grad()
def test_sessions_do_not_mix(kind):
    """Two outputs that are generated at the same time, by a session and its fresh(), are those generated in turn."""
    model, method = random_model(2), get_method("ccm-concat")
    one = kind(model, method, 2)
    one.read([3, 4, 5])
    assert len(list(one.generate([11, 12], 6, stop_ids=()))) == 6
    other = one.fresh()
    other.read([9, 8, 7, 6])
    expected = [list(session.generate([11, 12], 6, stop_ids=())) for session in (one, other)]
    outputs = [session.generate([11, 12], 6, stop_ids=()) for session in (one, other)]
    assert expected[0] != expected[1] and [list(row) for row in zip(*zip(*outputs))] == expected
    with pytest.raises(ValueError, match="split it"):
        next(one.generate([5] * (model.config.max_positions + 1)))


@torch.no_grad()
def test_stop_ids():
    """Outputs end before the first of several stop ids, for a batch and for one session."""
    model, method, input = random_model(2), get_method("ccm-concat"), [11, 12, 13]
    batch, session = Conversations(model, method, 2, 2, 4, 8, output=32), Session(model, method, 2)
    whole = list(session.generate(input, 32, stop_ids=()))
    stops = (whole[5], whole[9])
    expected = whole[: min(whole.index(id) for id in stops)]
    assert batch.generate([input, input], stop_ids=stops) == [expected] * 2
    for kind in (Session, FastSession):
        assert list(kind(model, method, 2).generate(input, 32, stop_ids=stops)) == expected


@pytest.mark.skipif(not torch.cuda.is_available(), reason="Triton kernels need a GPU")
@pytest.mark.parametrize("rows, width", [(12288, 4096), (4096, 11008), (515, 96), (8, 20000)])
def test_product_on_a_gpu(rows, width):
    """One token's product with the norm before it, SiLU or the sum after it, to the rounding of bf16."""
    from minccm.fast.kernels import product

    make = lambda *shape: torch.randn(*shape, device="cuda").bfloat16()
    weight, x, add = make(2 * rows, width), make(1, 1, width), make(1, 1, rows)
    norm = torch.nn.RMSNorm(width, 1e-5).cuda().bfloat16()
    torch.nn.init.normal_(norm.weight)
    x64, weight64 = x.double(), weight.double()
    normed = torch.nn.functional.rms_norm(x64, (width,), norm.weight.double(), norm.eps)
    gate, up = torch.nn.functional.linear(normed, weight64).chunk(2, -1)
    cases = [
        (product(x, weight), x64 @ weight64.T),
        (product(x, weight[:rows], add=add), x64 @ weight64[:rows].T + add.double()),
        (product(x, weight, norm.weight, norm.eps), torch.cat([gate, up], -1)),
        (product(x, weight, norm.weight, norm.eps, gated=True), torch.nn.functional.silu(gate) * up),
    ]
    for got, expected in cases:
        assert ((got.double() - expected).norm() / expected.norm()).item() < 2**-8


@pytest.mark.skipif(not torch.cuda.is_available(), reason="CUDA graphs need a GPU")
@pytest.mark.parametrize("name", ["ccm-concat", "ccm-merge", "full"])
@pytest.mark.parametrize("count", [1, 3])
@torch.no_grad()
def test_graphs_on_a_gpu(name, count):
    """On a GPU in bf16, with CUDA graphs of compiled code: the logits of a session, to the rounding of bf16."""
    from minccm.io.weights import load_model

    method, n = get_method(name), 4
    model = load_model("random:1m", "cuda")
    model.add_adapter(n, r=4)
    for tensor in model.adapter_state().values():
        torch.nn.init.normal_(tensor, std=0.1)
    join_weights(model.eval())
    sessions = [Session(model, method, n) for _ in range(count)]
    batch = Conversations(model, method, n, count, pairs=48, turn=16, output=4)
    ids = lambda length, seed: torch.randint(3, 500, (length,), generator=torch.Generator().manual_seed(seed)).tolist()
    for turn in range(3):
        contexts = [ids(5 + 3 * turn + i, 10 * turn + i) for i in range(count)]
        batch.read(contexts)
        for session, context in zip(sessions, contexts):
            session.read(context)
        inputs = [ids(6 + i, 100 + i) for i in range(count)]
        expected = torch.stack([session.logits(text)[-1] for session, text in zip(sessions, inputs)]).float()
        got = batch.logits(inputs).float()
        assert ((got - expected).norm() / expected.norm()).item() < 0.03
        outputs = batch.generate(inputs, stop_ids=())
        assert [len(output) for output in outputs] == [4] * count
        again = torch.stack(
            [session.logits(text + output[:3])[-1] for session, text, output in zip(sessions, inputs, outputs)]
        )
        assert ((batch.next_logits.float() - again.float()).norm() / again.float().norm()).item() < 0.03
        if count == 1:
            fast = FastSession(model, method, n)
            fast.memory = sessions[0].memory
            output = list(fast.generate(inputs[0], 4, stop_ids=()))
            again = sessions[0].logits(inputs[0] + output[:3])[-1].float()
            assert ((fast.talks.next_logits[0].float() - again).norm() / again.norm()).item() < 0.03
