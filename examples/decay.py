"""A memory that decays at a rate it learns: of what a step wrote, (1 - a)^k is left k steps later.

    Mem(t) = (1 - a) Mem(t-1) + a h(t),   a = sigmoid(w), w trained with the adapter

The paper's moving average has a = 0.5 throughout, its running mean a = 1/t. Training finds how long this memory is to
remember:

    python train.py --data dialog --method examples/decay.py
"""

import torch

from minccm.methods import Method

METHOD = Method(
    "decay",
    "as ccm-merge, with a moving average of a learned rate",
    lambda q, k: k.slot & (k.step == q.step - 1),
    rate=lambda t, w: torch.ones(1) if t == 1 else w.sigmoid(),
    learned=(-1.5,),  # a = 0.18 at first
)
