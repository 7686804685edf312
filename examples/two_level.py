"""Two levels of memory: the last steps as they are, what is older merged, as people remember a conversation.

    Mem(t) = [merged h(1) ... h(t - RECENT); h(t - RECENT + 1), ..., h(t)]

It holds (RECENT + 1) n pairs at most, and forgets the fine print of what is long ago only:

    python train.py --data dialog --method examples/two_level.py --n 2
"""

from minccm.methods import Method

RECENT = 6  # steps

METHOD = Method(
    "two-level",
    f"the last {RECENT} steps concatenated, older ones merged",
    lambda q, k: (k.comp & (q.step - k.step <= RECENT)) | (k.slot & (k.step == q.step - 1)),
    rate=lambda t: 1 / t,
    delay=RECENT,  # a step is merged when it leaves the recent ones
)
