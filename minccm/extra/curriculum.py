"""Curricula: training starts with easy samples or easy merging, and ends as ordinary training.

Length: samples have few contexts at first. The model learns much faster to recall recent contexts, and this carries
over to distant ones.

Merging: in a mean of many steps, the steps are hard to separate. A slot that only one step has written is as easy to
read as a COMP token. So the n slots are split among some places, and the steps take turns: step s is merged into place
s mod places only. The weights move from there to the method's own (merge_weights), slower and slower.
"""

import functools
from dataclasses import replace

import torch
from torch import Tensor

from minccm.methods import Method
from minccm.parallel import ParallelKV, merge_matrix
from minccm.sequence import Sequence

LONGEST = 30  # contexts of a sample near the end of the length curriculum, if training sets no limit of its own
LONG, SHORT_EVERY, SHORT = (
    12,
    7,
    4,
)  # among longer samples than LONG, one in 7 has at most 4 contexts: or they are forgotten
MERGE_SHARE = 0.7  # the merge curriculum takes this share of the steps


def length_limit(index: int, step: int, steps: int, share: float, max_contexts: int | None = None) -> int | None:
    """How many contexts sample number `index`, used in `step` of `steps`, may have; None: as many as it has.

    share: the curriculum takes this share of the steps; 0 is no curriculum. It may be above 1, and is then cut off.
    """
    if not share:
        return max_contexts
    done = (step + 1) / max(1, share * steps)  # 1 at the end of the curriculum
    limit = max_contexts if done >= 1 else max(2, round((max_contexts or LONGEST) * done**2))
    is_long = limit is None or limit > LONG
    return SHORT if is_long and index % SHORT_EVERY == 0 else limit


def check_merge_curriculum(method: Method, n: int, places: int) -> None:
    """Raises ValueError for a method that the merge curriculum does not fit, or for too many places."""
    simple = not (method.learned or method.delay or method.stride > 1)
    if not (method.merge_rate and method.comp_after == "step" and simple):
        raise ValueError(
            f"the merge curriculum is for methods that merge all steps at a fixed rate, as ccm-merge, not {method.name}"
        )
    if not 1 <= places <= n:
        raise ValueError(f"the merge curriculum needs 1 to n = {n} places, not {places}")


@functools.cache
def take_turns(method: Method, n: int, places: int) -> Method:
    """The method with n slots split among `places`: step s is merged into place s mod places only.

    A slot is the mean of its own steps, and zero before the first of them.
    """
    place = torch.arange(n) * places // n

    def merge_rate(t: int) -> Tensor:  # (n,)
        return (place == (t - 1) % places).double() / ((t - 1) // places + 1)

    return replace(method, merge_rate=merge_rate)


def turns_share(step: int, steps: int) -> float:
    """How much the turns still count in a training step: from 1 at the start to 0 after MERGE_SHARE of the steps."""
    return max(0.0, 1 - step / (MERGE_SHARE * steps)) ** 2


def merge_mixture(method: Method, n: int, places: int, step: int, steps: int) -> list[tuple[float, Method]]:
    """What a training step merges by: shares that sum to 1, and the methods whose merge weights they weigh."""
    share = turns_share(step, steps)
    return [(1 - share, method), (share, take_turns(method, n, places))] if share else [(1.0, method)]


class MixtureKV(ParallelKV):
    """Keys and values of a parallel pass that merges by a mixture of methods, which differ in their merge_rate only."""

    def __init__(self, mixture: list[tuple[float, Method]], batch: Sequence):
        super().__init__(mixture[0][1], batch)
        if self.P is not None:  # P is linear in the merge weights
            self.P = sum(share * merge_matrix(method, batch.info, batch.slots) for share, method in mixture)[:, None]
