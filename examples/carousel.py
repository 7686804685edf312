"""Places that take turns: step t is merged into place t mod PLACES, and into that one alone.

    Mem(t) = [M(t - PLACES + 1), ..., M(t)],   M(t) = (1 - a_t) M(t - PLACES) + a_t h(t)

ccm-merge averages every step into all of its slots. Here the same number of slots is split among PLACES, and each holds
the mean of T / PLACES steps instead of T: as exact as ccm-concat up to PLACES steps, and no larger ever after.

    python train.py --data dialog --method examples/carousel.py --n 2
"""

from minccm.methods import Method

PLACES = 8  # with n = 2, as large as ccm-merge with n = 16

METHOD = Method(
    "carousel",
    f"{PLACES} places, of which each step is merged into one",
    lambda q, k: k.slot & (q.step - k.step <= PLACES),
    rate=lambda t: 1 / t,  # of the steps that this place has seen
    stride=PLACES,
)
