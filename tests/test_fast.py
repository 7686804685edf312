"""Many conversations in fixed buffers say what each says alone: the same logits, memory and answers, to rounding."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from minccm.fast import Conversations, FastSession
from minccm.methods import METHODS, PAD, get_method
from minccm.model import RMSNorm
from minccm.online import Session
from tests.conftest import ROOT, random_model

EXAMPLES = sorted(map(str, (ROOT / "examples").glob("*.py")))
texts = st.lists(st.integers(3, 39), min_size=1, max_size=9)
turns = st.one_of(st.none(), texts)
talks = st.lists(st.lists(turns, min_size=0, max_size=5), min_size=1, max_size=3)
methods = st.builds(get_method, st.sampled_from([*sorted(METHODS), *EXAMPLES]), st.booleans())


def memory_of(batch, i):
    """Columns of conversation i, and its keys at them, ordered as in a session."""
    places = (batch.columns[i, :, 1] != PAD).nonzero()[:, 0]
    places = places[batch.columns[i, places, 4].argsort(stable=True)]
    return batch.columns[i, places], batch.keys[:, i][:, :, places]


def test_joined_lora():
    """A and B of q, k, v as one product: the same memory; and still the same when they have changed in place."""
    model, method, read = random_model(2), get_method("ccm-merge"), []
    model.join_weights()
    for join in (lambda: None, model.join_lora, lambda: [p.data.mul_(2) for p in model.adapter_state().values()]):
        join()
        with torch.no_grad():
            session = Session(model, method, 2)
            session.read([1, 5, 6, 7])
            read.append(session.memory.keys)
    torch.testing.assert_close(read[1], read[0], atol=1e-12, rtol=1e-12)
    changed = random_model(2)
    for tensor in changed.adapter_state().values():
        tensor.data.mul_(2)
    session = Session(changed, method, 2)
    session.read([1, 5, 6, 7])
    torch.testing.assert_close(read[2], session.memory.keys, atol=1e-12, rtol=1e-12)


def test_weights_stay_where_graphs_read_them():
    """Joined once, weights and adapter are where they were when the next conversations begin; a new adapter is not."""
    model = random_model(2)
    held = lambda: [
        tensor.data_ptr()
        for block in model.layers
        for tensor in (block.self_attn.qkv, block.mlp.gate_up, *block.self_attn.q_proj.joint)
    ]
    joined = []
    for _ in range(2):
        FastSession(model, get_method("ccm-concat"), 2)
        Conversations(model, get_method("ccm-concat"), 2, 1, 4, 4)
        joined.append(held())
    assert joined[0] == joined[1]
    old = model.layers[0].self_attn.q_proj.joint
    model.add_adapter(2)
    model.join_lora()
    assert model.layers[0].self_attn.q_proj.joint[0] is not old[0]


@settings(max_examples=60, deadline=None, derandomize=True)
@given(methods, st.integers(1, 4), talks, texts, texts)
def test_a_batch_is_each_alone(method, n, talks, input, other):
    """For every method, with conversations at different time steps: logits after the memory, and the memory itself."""
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
    answers = batch.generate(inputs, stop=False)
    for i, (session, text) in enumerate(zip(sessions, inputs)):
        assert answers[i] == list(session.generate(text, 4, stop=False))
        held, keys = memory_of(batch, i)
        order = session.memory.columns.order.argsort(stable=True)
        assert torch.equal(held[:, 1:4], session.memory.columns.data[order][:, 1:4])
        torch.testing.assert_close(keys, session.memory.keys[:, :, order], atol=1e-9, rtol=1e-9)


def test_a_place_is_used_again():
    """A conversation that begins anew in a used place knows nothing of the one before; a full memory is told of."""
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
    with pytest.raises(ValueError, match="longer than a turn"):
        batch.read([[5] * 7, None])


@settings(max_examples=40, deadline=None, derandomize=True)
@given(methods, st.lists(texts, max_size=4), st.lists(texts, min_size=1, max_size=3), st.sampled_from([0.0, 1.0]))
def test_a_session_that_answers_from_buffers(method, contexts, inputs, temperature):
    """It says what a Session says, drawn or not, in buffers that grow as they have to; and remembers the same."""
    model, said = random_model(2, learned=method.learned), []
    for kind in (Session, FastSession):
        session = kind(model, method, 2)
        session.sizes = 1, 1, 1
        said.append([])
        for i, ids in enumerate(inputs):
            for context in contexts:
                session.read(context)
            generator = torch.Generator().manual_seed(i)
            said[-1].append(list(session.generate(ids, 3 + i, temperature=temperature, generator=generator)))
            next(session.generate(ids), None)  # one that is left early changes nothing
        said[-1].append(session.memory.keys)
        assert len(session.anew().memory) == 0
    assert said[0][:-1] == said[1][:-1]
    torch.testing.assert_close(said[1][-1], said[0][-1], atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("kind", [Session, FastSession])
def test_sessions_that_do_not_meet(kind):
    """Two answers that are made at the same time, by a session and one like it, are those that are made in turn."""
    model, method = random_model(2), get_method("ccm-concat")
    one = kind(model, method, 2)
    one.read([3, 4, 5])
    assert len(list(one.generate([11, 12], 6, stop=False))) == 6
    other = one.anew()
    other.read([9, 8, 7, 6])
    expected = [list(session.generate([11, 12], 6, stop=False)) for session in (one, other)]
    answers = [session.generate([11, 12], 6, stop=False) for session in (one, other)]
    assert expected[0] != expected[1] and [list(row) for row in zip(*zip(*answers))] == expected
    with pytest.raises(ValueError, match="split it"):
        next(one.generate([5] * (model.config.max_positions + 1)))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="a Triton kernel is of a GPU")
@pytest.mark.parametrize("rows, width", [(12288, 4096), (4096, 11008), (515, 96), (8, 20000)])
def test_product_on_a_gpu(rows, width):
    """One token's product with the norm before it, silu or the sum behind it, to what bf16 rounds of its result."""
    from minccm.kernel import product

    make = lambda *shape: torch.randn(*shape, device="cuda").bfloat16()
    weight, x, add = make(2 * rows, width), make(1, 1, width), make(1, 1, rows)
    norm = RMSNorm(width, 1e-5).cuda().bfloat16()
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


@pytest.mark.skipif(not torch.cuda.is_available(), reason="CUDA graphs are of a GPU")
@pytest.mark.parametrize("name", ["ccm-concat", "ccm-merge", "full"])
@pytest.mark.parametrize("count", [1, 3])
def test_graphs_on_a_gpu(name, count):
    """On a GPU in bf16, by CUDA graphs of compiled code: the logits of a session, to what bf16 rounds."""
    from minccm.checkpoint import load_model

    method, n = get_method(name), 4
    model = load_model("random:1m", "cuda")
    model.add_adapter(n, r=4)
    for tensor in model.adapter_state().values():
        torch.nn.init.normal_(tensor, std=0.1)
    model.eval().join_weights()
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
        answers = batch.generate(inputs, stop=False)
        assert [len(answer) for answer in answers] == [4] * count
        again = torch.stack(
            [session.logits(text + answer[:3])[-1] for session, text, answer in zip(sessions, inputs, answers)]
        )
        assert ((batch.logits_.float() - again.float()).norm() / again.float().norm()).item() < 0.03
        if count == 1:
            fast = FastSession(model, method, n)
            fast.memory = sessions[0].memory
            answer = list(fast.generate(inputs[0], 4, stop=False))
            again = sessions[0].logits(inputs[0] + answer[:3])[-1].float()
            assert ((fast.talks.logits_[0].float() - again).norm() / again.norm()).item() < 0.03
