"""Conditional LoRA leaves the base model alone: where no COMP token is seen, text is the base's bit for bit."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from minccm.layout import collate, lay_out
from minccm.mask import Parallel
from minccm.methods import METHODS, get_method
from minccm.online import Session
from tests.conftest import random_model

conditional = sorted(name for name, method in METHODS.items() if method.conditional and method.comp)
texts = st.lists(st.integers(3, 39), min_size=1, max_size=20)


@settings(max_examples=30, deadline=None, derandomize=True)
@given(st.sampled_from(conditional), texts, texts, texts)
def test_first_context_is_read_by_the_base(name, context, input, target):
    """In the parallel pass, the text of the first context, which sees no COMP token, is read as by the bare model."""
    method, n = get_method(name), 2
    batch = collate([[lay_out(method, n, 40, [context], input, target)]])
    adapted = random_model(n, torch.float32, learned=method.learned)
    view = Parallel(method.of(adapted), batch, torch.float32)
    got = adapted(batch.tokens, batch.positions, view, batch.comp, batch.comp)
    bare = random_model(n, torch.float32, learned=method.learned)
    bare.load_state_dict(adapted.state_dict())
    bare.comp_embeddings.data.zero_()
    view = Parallel(method.of(bare), batch, torch.float32)
    expected = bare(batch.tokens, batch.positions, view, batch.comp, None)
    assert torch.equal(got[0, : len(context)], expected[0, : len(context)])
    assert not torch.equal(got[0, len(context) :], expected[0, len(context) :])  # and the rest is not


@settings(max_examples=30, deadline=None, derandomize=True)
@given(st.sampled_from(conditional), texts)
def test_text_alone(name, text):
    """A session with an adapter and an empty memory answers as the bare model does."""
    with_adapter = random_model(2, torch.float32, learned=get_method(name).learned)
    without = random_model(2, torch.float32, adapter=False)
    expected = Session(without, get_method(name), 2, adapted=False).logits(text)
    assert torch.equal(Session(with_adapter, get_method(name), 2).logits(text), expected)
