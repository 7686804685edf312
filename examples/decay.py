"""A memory that decays at a learned rate: after k more steps, (1 - a)^k of what a step wrote is left.

    Mem(t) = (1 - a) Mem(t-1) + a h(t),   a = sigmoid(w), w trains with the adapter

The paper's moving average has a = 0.5, and its running mean has a = 1/t. Here training finds a:

    python train.py --data dialog --method examples/decay.py
"""

import torch

from minccm.methods import Method

METHOD = Method(
    "decay",
    "as ccm-merge, with a moving average of a learned rate",
    attends=lambda q, k: k.is_slot & (k.step == q.step - 1),
    merge_rate=lambda t, w: torch.ones(1) if t == 1 else w.sigmoid(),
    learned=(-1.5,),  # a = 0.18 at first
)
