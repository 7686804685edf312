"""The paper's parallel training claims that one masked pass equals the recursion over time. So it must, to rounding."""

from dataclasses import replace

import torch
import torch.nn.functional as F
from hypothesis import example, given, settings
from hypothesis import strategies as st

from minccm.layout import collate, lay_out
from minccm.mask import predict
from minccm.methods import METHODS, get_method
from minccm.online import Session
from tests.conftest import random_model

tokens = st.integers(3, 39)
samples = st.tuples(
    st.lists(st.lists(tokens, max_size=20), min_size=1, max_size=8),  # contexts
    st.lists(tokens, min_size=1, max_size=6),  # input
    st.lists(tokens, min_size=1, max_size=6),  # target
)
batches = st.lists(samples, min_size=1, max_size=4)
methods = st.builds(get_method, st.sampled_from(sorted(METHODS)), st.booleans())
quick = settings(max_examples=60, deadline=None, derandomize=True)


def recursive_logits(model, method, n, contexts, text):
    session = Session(model, method, n)
    for context in [sum(contexts, [])] if method.comp == "end" else contexts:
        session.read(context)
    return session.logits(text)


def parallel_logits(model, method, n, rows):
    """Logits at the places that predict the targets, sample by sample, of rows that each pack some samples."""
    layouts = [[lay_out(method, n, 40, *sample) for sample in row] for row in rows]
    logits, _ = predict(model, method, collate(layouts))
    return logits.split([len(sample[2]) for row in rows for sample in row])


def gradients(model, logits, target) -> dict:
    """Those of the loss, by name; 0 where a parameter plays no part."""
    trained = model.adapter_state()
    loss = F.cross_entropy(logits, torch.tensor(target)) + 0.0 * sum(p.sum() for p in trained.values())
    return dict(zip(trained, torch.autograd.grad(loss, list(trained.values()))))


@quick
@given(methods, st.integers(1, 8), batches, st.booleans())
def test_logits(method, n, batch, packed):
    """In float64 within 1e-9, for every method, with and without sink, packed in one row or padded in many."""
    model = random_model(n, learned=method.learned)
    rows = [batch] if packed else [[sample] for sample in batch]
    for (contexts, input, target), logits in zip(batch, parallel_logits(model, method, n, rows)):
        expected = recursive_logits(model, method, n, contexts, input + target)[-len(target) - 1 : -1]
        torch.testing.assert_close(logits, expected, atol=1e-9, rtol=1e-9)


@settings(quick, max_examples=20)
@given(batches, st.booleans())
def test_slots_with_rates_of_their_own(batch, packed):
    """A method whose slots merge at three different rates, as `rate` may give them: the same logits both ways."""
    own = replace(
        get_method("ccm-merge"), name="own-rates", rate=lambda t: t ** -torch.tensor([0.3, 1.0, 2.0]).double()
    )
    model = random_model(3)
    rows = [batch] if packed else [[sample] for sample in batch]
    for (contexts, input, target), logits in zip(batch, parallel_logits(model, own, 3, rows)):
        expected = recursive_logits(model, own, 3, contexts, input + target)[-len(target) - 1 : -1]
        torch.testing.assert_close(logits, expected, atol=1e-9, rtol=1e-9)


@settings(quick, max_examples=25)
@given(methods, st.integers(1, 4), samples)
def test_gradients(method, n, sample):
    """Gradients of the parallel pass are those of backpropagation through the recursion."""
    contexts, input, target = sample
    model = random_model(n, learned=method.learned)
    (logits,) = parallel_logits(model, method, n, [[sample]])
    got = gradients(model, logits, target)
    logits = recursive_logits(model, method, n, contexts, input + target)[-len(target) - 1 : -1]
    for name, expected in gradients(model, logits, target).items():
        torch.testing.assert_close(got[name], expected, atol=1e-9, rtol=1e-9)


@settings(quick, max_examples=40)
@given(methods, st.integers(1, 4), batches)
def test_packing_changes_nothing(method, n, batch):
    """A sample's logits are the same alone, padded in a batch, and packed among others."""
    model = random_model(n, learned=method.learned)
    alone = [parallel_logits(model, method, n, [[sample]])[0] for sample in batch]
    padded = parallel_logits(model, method, n, [[sample] for sample in batch])
    packed = parallel_logits(model, method, n, [batch[:1], batch[1:]] if batch[1:] else [batch])
    for one, two, three in zip(alone, padded, packed):
        torch.testing.assert_close(two, one, atol=1e-9, rtol=1e-9)
        torch.testing.assert_close(three, one, atol=1e-9, rtol=1e-9)


@settings(quick, max_examples=40)
@given(methods, st.integers(1, 4), samples, st.lists(samples.map(lambda sample: sample[1:]), max_size=3), samples)
@example(get_method("full"), 1, ([[7]], [8], [9]), [([10], [11])], ([], [12], [13]))  # sees most, and may need no mask
def test_questions_of_one_memory_do_not_see_each_other(method, n, sample, more, other):
    """Several questions in one pass get the logits that each would get if it were the only one."""
    contexts, *first = sample
    model = random_model(n, learned=method.learned)
    layouts = [lay_out(method, n, 40, *sample, more=more), lay_out(method, n, 40, *other)]
    targets = [target for _, target in [first, *more, other[1:]]]
    for rows in ([layouts], [[layout] for layout in layouts]):
        together = predict(model, method, collate(rows))[0].split([len(target) for target in targets])
        for (input, target), logits in zip([first, *more], together):
            (alone,) = parallel_logits(model, method, n, [[(contexts, input, target)]])
            torch.testing.assert_close(logits, alone, atol=1e-9, rtol=1e-9)


@quick
@given(methods, st.integers(1, 8), samples)
def test_memory_holds_what_is_seen(method, n, sample):
    """Online, the memory has as many KV pairs as the parallel pass lets the last step see: nothing more is kept."""
    contexts = [sum(sample[0], [])] if method.comp == "end" else sample[0]
    session = Session(random_model(n, learned=method.learned), method, n)
    for context in contexts:
        session.read(context)
    layout = lay_out(method, n, 40, *sample)
    from eval import memory_pairs

    assert len(session.memory) == memory_pairs(method, layout)
    assert session.memory.position == (sum(map(len, contexts)) if method.reads else 0)
