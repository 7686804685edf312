"""Conditional LoRA leaves the base model alone: text that attends to no COMP token gets the same bits without it."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from minccm.methods import METHODS, get_method
from minccm.parallel import ParallelKV
from minccm.sequence import build_sequence, pad_batch
from minccm.session import Session
from tests.conftest import random_model

CONDITIONAL = sorted(name for name, method in METHODS.items() if method.conditional and method.comp_after)
texts = st.lists(st.integers(3, 39), min_size=1, max_size=20)
quick = settings(max_examples=30, deadline=None, derandomize=True)


@quick
@given(st.sampled_from(CONDITIONAL), texts, texts, texts)
def test_first_context(name, context, input, output):
    """In the parallel pass, the text of the first context gets the logits of the base model."""
    method, n = get_method(name), 2
    batch = pad_batch([build_sequence(method, n, 40, [context], [(input, output)])])
    model, logits = random_model(n, torch.float32), []
    for lora_mask in (method.lora_mask(batch.info), None):
        logits.append(model(batch.tokens, batch.positions, ParallelKV(method, batch), lora_mask)[0])
        model.comp_embeddings.data.zero_()  # the second time without the adapter
    adapted, base = logits
    assert torch.equal(adapted[: len(context)], base[: len(context)])
    assert not torch.equal(adapted[len(context) :], base[len(context) :])


@quick
@given(st.sampled_from(CONDITIONAL), texts)
def test_text_alone(name, text):
    """A session with an adapter and an empty memory gives the logits of the base model, as do full and no context."""
    base = random_model(2, torch.float32, adapter=False)
    expected = Session(base, get_method("full"), 0).logits(text)
    model = random_model(2, torch.float32)
    for method in (get_method(name), get_method("full"), get_method("none")):
        assert torch.equal(Session(model, method, 2 if method.comp_after else 0).logits(text), expected)
