"""Masks: the rule of each method in words, checked pair by pair. And the merge matrix, checked against its meaning."""

import pytest
import torch

from minccm.methods import COMP, METHODS, SLOT, TEXT, TokenInfo, attention_mask, get_method, merge_weights
from minccm.parallel import merge_matrix
from minccm.sequence import build_sequence, pad_batch

# Which keys of earlier steps a query attends to: (query's step, key's kind, key's step, last step) -> bool
CONCAT = lambda q, kind, k, last: kind == COMP
CONCAT_INDEPENDENT = lambda q, kind, k, last: kind == COMP and q == last
MERGE = lambda q, kind, k, last: kind == SLOT and k == q - 1
RULES = {
    "none": lambda q, kind, k, last: False,
    "full": lambda q, kind, k, last: kind == TEXT,
    "gist": CONCAT,
    "ccm-concat": CONCAT,
    "ccm-concat-independent": CONCAT_INDEPENDENT,
    "gist-online": CONCAT_INDEPENDENT,
    "ccm-concat-plain": CONCAT,
    "ccm-merge": MERGE,
    "ccm-merge-ema": MERGE,
    "ccm-merge-plain": MERGE,
    "ccm-merge-independent": lambda q, kind, k, last: kind == SLOT and k == q - 1 and q == last,
    "compressive": lambda q, kind, k, last: kind == SLOT,
}
PLAIN_LORA = ("ccm-concat-plain", "ccm-merge-plain", "compressive")  # acts on every token


def test_every_method_has_a_rule():
    assert RULES.keys() == METHODS.keys()


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("sink", [False, True])
def test_rules(name, sink):
    """A query attends to its own step up to itself, to the sink if there is one, and to earlier steps by its rule."""
    method = get_method(name, sink)
    sequence = build_sequence(method, 2, 100, [[1, 7, 8], [9], [4, 5, 6]], [([3, 3], [4, 2])])
    queries, keys = sequence.info, TokenInfo.cat([sequence.info, sequence.slots])
    mask = attention_mask(method, queries, keys)
    last = int(queries.step.max())
    for q, query_step in enumerate(queries.step.tolist()):
        for k, (kind, key_step) in enumerate(zip(keys.kind.tolist(), keys.step.tolist())):
            own_step = kind != SLOT and key_step == query_step and k <= q
            earlier = key_step < query_step and RULES[name](query_step, kind, key_step, last)
            assert bool(mask[q, k]) == (own_step or earlier or (sink and k == 0)), (q, k)


@pytest.mark.parametrize("name", METHODS)
def test_lora_acts_on_comp_tokens(name):
    """LoRA acts on COMP tokens only, or with plain LoRA on every token. It never acts on padding."""
    method = get_method(name)
    short, long = (build_sequence(method, 2, 100, [[1, 7]] * count, [([3], [4, 2])]) for count in (1, 2))
    batch = pad_batch([short, long])
    expected = batch.info.step >= 0 if name in PLAIN_LORA else batch.info.kind == COMP
    assert torch.equal(method.lora_mask(batch.info), expected)


def test_questions_are_hidden_from_each_other():
    """Two questions read the same contexts, start at the same position, and do not attend to each other."""
    sequence = build_sequence(get_method("full"), 0, 100, [[1, 7, 8]], [([3, 3], [4]), ([5], [6, 2])])
    mask = attention_mask(get_method("full"), sequence.info, sequence.info)
    first, second = slice(3, 6), slice(6, 9)
    assert mask[first, :3].all() and mask[second, :3].all() and not mask[second, first].any()
    assert sequence.positions.tolist() == [0, 1, 2, 3, 4, 5, 3, 4, 5]


def test_a_slot_does_not_belong_to_its_own_step():
    """The tokens of a step do not attend to the slot that is made after it, whatever its order is."""
    token, slot = (TokenInfo.from_rows([(kind, 1, 0, 3, 0)]) for kind in (TEXT, SLOT))
    method = get_method("none")
    assert attention_mask(method, token, token).all() and not attention_mask(method, token, slot).any()


def test_merge_weights():
    """The running mean weighs each of t steps by 1/t. The moving average halves the weights of older steps."""
    mean = merge_weights(get_method("ccm-merge"), 5)[..., 0]
    torch.testing.assert_close(mean, torch.ones(5, 5).tril().double() / torch.arange(1, 6)[:, None])
    ema = merge_weights(get_method("ccm-merge-ema"), 4)[..., 0]
    torch.testing.assert_close(ema[3], torch.tensor([0.125, 0.125, 0.25, 0.5], dtype=torch.float64))


def test_compressive_pools_parts_of_the_text():
    """Compressive memory averages the text of a step in n parts of about equal length. A short text fills fewer."""
    method = get_method("compressive")
    batch = pad_batch([build_sequence(method, 2, 100, [[1, 7, 8, 9], [5]], [([3], [2])])])
    P = merge_matrix(method, batch.info, batch.slots)[0]
    assert P[:, :5].tolist() == [[1 / 2, 1 / 2, 0, 0, 0], [0, 0, 1 / 2, 1 / 2, 0], [0, 0, 0, 0, 1]]
