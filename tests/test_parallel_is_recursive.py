"""Parallel training and the recursion over time give the same logits and gradients, for every method, in float64."""

from dataclasses import replace

import torch
import torch.nn.functional as F
from hypothesis import example, given, settings
from hypothesis import strategies as st

from minccm.methods import TokenInfo, attention_mask, get_method
from minccm.parallel import forward_parallel
from minccm.sequence import build_sequence, pad_batch
from minccm.session import Session
from tests.conftest import ALL_METHODS, random_model

STEP1 = replace(get_method("full"), name="step 1", conditional=False)  # the paper's step 1 is trained this way
TRAINED_METHODS = [*ALL_METHODS.values(), STEP1]

tokens = st.integers(3, 39)
questions = st.tuples(
    st.lists(tokens, min_size=1, max_size=6),  # input
    st.lists(tokens, min_size=1, max_size=6),  # output
)
samples = st.tuples(st.lists(st.lists(tokens, max_size=20), min_size=1, max_size=8), questions)  # contexts, question
batches = st.lists(samples, min_size=1, max_size=4)
methods = st.builds(lambda method, sink: replace(method, sink=sink), st.sampled_from(TRAINED_METHODS), st.booleans())
quick = settings(max_examples=60, deadline=None, derandomize=True)
TOLERANCE = dict(atol=1e-9, rtol=1e-9)


def recursive_session(model, method, n, contexts) -> Session:
    """A session that has read the contexts, as the method reads them."""
    session = Session(model, method, n)
    for context in [sum(contexts, [])] if method.comp_after == "end" else contexts:
        session.read(context)
    return session


def recursive_logits(model, method, n, contexts, question):
    """Logits at the tokens that predict the output, step by step."""
    input, output = question
    return recursive_session(model, method, n, contexts).logits(input + output)[-len(output) - 1 : -1]


def parallel_logits(model, method, n, samples):
    """Logits at the tokens that predict the outputs: a tensor per question of the samples (contexts, *questions)."""
    sequences = [build_sequence(method, n, 40, contexts, questions) for contexts, *questions in samples]
    logits = forward_parallel(model, method, pad_batch(sequences))
    return logits.split([len(output) for _, *questions in samples for _, output in questions])


def gradients(model, logits, output) -> dict:
    """Gradients of the loss by name; 0 where the loss does not depend on a parameter."""
    trained = model.adapter_state()
    loss = F.cross_entropy(logits, torch.tensor(output)) + 0.0 * sum(p.sum() for p in trained.values())
    return dict(zip(trained, torch.autograd.grad(loss, list(trained.values()))))


@settings(quick, max_examples=100)
@given(methods, st.integers(1, 8), batches)
def test_logits(method, n, batch):
    """Padded batches of random samples: logits within 1e-9 of the recursion, with and without a sink."""
    model = random_model(n, learned=method.learned)
    for (contexts, question), logits in zip(batch, parallel_logits(model, method, n, batch)):
        torch.testing.assert_close(logits, recursive_logits(model, method, n, contexts, question), **TOLERANCE)


@settings(quick, max_examples=50)
@given(methods, st.integers(1, 4), samples)
def test_gradients(method, n, sample):
    """The gradients of the parallel pass are those of backpropagation through the recursion."""
    contexts, question = sample
    model = random_model(n, learned=method.learned)
    parallel = gradients(model, parallel_logits(model, method, n, [sample])[0], question[1])
    recursive = gradients(model, recursive_logits(model, method, n, contexts, question), question[1])
    for name, expected in recursive.items():
        torch.testing.assert_close(parallel[name], expected, **TOLERANCE)


@settings(quick, max_examples=20)
@given(batches)
def test_merge_rates_of_single_slots(batch):
    """A method can give each slot a merge rate of its own."""
    rates = torch.tensor([0.3, 1.0, 2.0], dtype=torch.float64)
    method = replace(get_method("ccm-merge"), name="three rates", merge_rate=lambda t: t**-rates)
    model = random_model(3)
    for (contexts, question), logits in zip(batch, parallel_logits(model, method, 3, batch)):
        torch.testing.assert_close(logits, recursive_logits(model, method, 3, contexts, question), **TOLERANCE)


@settings(quick, max_examples=40)
@given(methods, st.integers(1, 4), batches)
def test_padding_changes_nothing(method, n, batch):
    """The logits of a sample are the same alone and in a padded batch."""
    model = random_model(n, learned=method.learned)
    alone = [parallel_logits(model, method, n, [sample])[0] for sample in batch]
    for one, other in zip(alone, parallel_logits(model, method, n, batch)):
        torch.testing.assert_close(one, other, **TOLERANCE)


@settings(quick, max_examples=40)
@given(methods, st.integers(1, 4), samples, st.lists(questions, max_size=3), samples)
@example(get_method("full"), 1, ([[7]], ([8], [9])), [([10], [11])], ([], ([12], [13])))
def test_questions_of_one_memory(method, n, sample, more, other):
    """Several questions in one pass get the logits that each of them gets alone, and in the recursion."""
    contexts, first = sample
    model = random_model(n, learned=method.learned)
    together = parallel_logits(model, method, n, [(contexts, first, *more), other])
    for question, logits in zip([first, *more], together):
        alone = parallel_logits(model, method, n, [(contexts, question)])[0]
        torch.testing.assert_close(logits, alone, **TOLERANCE)
        torch.testing.assert_close(logits, recursive_logits(model, method, n, contexts, question), **TOLERANCE)


@quick
@given(methods, st.integers(1, 8), samples)
def test_memory_holds_what_is_read(method, n, sample):
    """The online memory holds exactly the KV pairs that the input attends to in the parallel pass, and no others."""
    contexts, question = sample
    memory = recursive_session(random_model(n, learned=method.learned), method, n, contexts).memory
    sequence = build_sequence(method, n, 40, contexts, [question])
    keys = TokenInfo.cat([sequence.info, sequence.slots])
    query = sequence.info[-1:]
    read = attention_mask(method, query, keys)[0] & (keys.step < query.step)
    assert len(memory) == int(read.sum())
    assert memory.text == (sum(map(len, contexts)) if method.reads_context else 0)
