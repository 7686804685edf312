"""Two levels of memory: the last RECENT steps one by one, and the mean of all older steps.

    Mem(t) = [merged h(1) ... h(t - RECENT); h(t - RECENT + 1), ..., h(t)]

The memory holds at most (RECENT + 1) n pairs, and blurs only old steps:

    python train.py --data dialog --method examples/two_level.py --n 2
"""

from minccm.methods import Method

RECENT = 6  # steps

METHOD = Method(
    "two-level",
    f"the last {RECENT} steps concatenated, older ones merged",
    attends=lambda q, k: (k.is_comp & (q.step - k.step <= RECENT)) | (k.is_slot & (k.step == q.step - 1)),
    merge_rate=lambda t: 1 / t,
    delay=RECENT,  # a step is merged when it is no longer one of the last RECENT
)
