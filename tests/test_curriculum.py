"""Curricula: training starts with short samples, or with slots that the steps write in turn, and ends as ordinary."""

from dataclasses import replace

import pytest
import torch

from minccm.extra.curriculum import MixtureKV, check_merge_curriculum, length_limit, merge_mixture, take_turns
from minccm.methods import METHODS, get_method, merge_weights
from minccm.parallel import forward_parallel
from minccm.sequence import build_sequence, pad_batch
from tests.conftest import random_model

MERGE = get_method("ccm-merge")


def test_samples_grow():
    """From two contexts at first to all at the end; one sample in seven stays short."""
    limits = [length_limit(1, step, steps=100, share=0.5) for step in range(100)]
    assert limits[0] == 2 and limits[48] > 20 and limits[49:] == [None] * 51
    numbers = [limit for limit in limits if limit]
    assert numbers == sorted(numbers)
    assert [length_limit(index, 99, 100, 0.5) for index in range(8)] == [4, *[None] * 6, 4]


def test_a_limit_of_contexts():
    """The largest number of contexts holds with and without the curriculum."""
    assert [length_limit(1, step, 100, 0.5, max_contexts=6) for step in (0, 48, 99)] == [2, 6, 6]
    assert length_limit(7, 99, 100, 0.5, max_contexts=3) == 3
    assert [length_limit(7, step, 100, share=0, max_contexts=6) for step in (0, 99)] == [6, 6]
    assert length_limit(1, 99, 100, share=2) == 8  # cut off before its end: 30 / 2^2


def test_turns():
    """With three places, a slot is the mean of every third step; with one place, of all steps, as in ccm-merge."""

    def merge_rate(t):  # slots 0 and 1 are written at t = 1, 4, 7, slots 2 and 3 at t = 2, 5, 8
        return ((t - 1) % 3 == torch.tensor([0, 0, 1, 1, 2, 2])) / ((t - 1) // 3 + 1)

    turns = merge_weights(take_turns(MERGE, 6, 3), 8)
    torch.testing.assert_close(turns, merge_weights(replace(MERGE, merge_rate=merge_rate), 8), atol=1e-6, rtol=0)
    assert turns[7, :, 3].nonzero()[:, 0].tolist() == [1, 4, 7] and not turns[1, :, 4:].any()
    one_place = merge_weights(take_turns(MERGE, 6, 1), 8)
    torch.testing.assert_close(one_place, merge_weights(MERGE, 8).expand(-1, -1, 6))


def test_the_mixture_moves_from_turns_to_the_method():
    """At step 35 of 100, a quarter of the turns is left; after 70 steps nothing is."""
    turns = take_turns(MERGE, 4, 2)
    assert merge_mixture(MERGE, 4, 2, 0, 100) == [(0.0, MERGE), (1.0, turns)]
    assert [share for share, _ in merge_mixture(MERGE, 4, 2, 35, 100)] == pytest.approx([0.75, 0.25])
    assert merge_mixture(MERGE, 4, 2, 70, 100) == [(1.0, MERGE)]


def test_forward_with_a_mixture():
    """Turns alone give the logits of a method that merges in turns; the method alone gives its own."""
    model, turns = random_model(4), take_turns(MERGE, 4, 2)
    batch = pad_batch([build_sequence(MERGE, 4, 40, [[5, 6]] * count, [([7], [8])]) for count in (3, 5)])
    mixed = lambda *mixture: forward_parallel(model, MERGE, batch, MixtureKV(list(mixture), batch))
    for method in (MERGE, turns):
        expected = forward_parallel(model, method, batch)
        torch.testing.assert_close(mixed((1.0, method)), expected, atol=1e-9, rtol=1e-9)
    assert (mixed((0.5, MERGE), (0.5, turns)) - mixed((1.0, MERGE))).abs().max() > 1e-3


def test_only_methods_that_merge_all_steps():
    """Other methods are refused, as are more places than slots."""
    fit = []
    for name, method in METHODS.items():
        try:
            check_merge_curriculum(method, 4, 2)
            fit.append(name)
        except ValueError as error:
            assert name in str(error)
    assert fit == ["ccm-merge", "ccm-merge-ema", "ccm-merge-plain", "ccm-merge-independent"]
    with pytest.raises(ValueError, match="1 to n = 4 places, not 5"):
        check_merge_curriculum(MERGE, 4, 5)
