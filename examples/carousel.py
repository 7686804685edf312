"""A fixed number of places in turn: step t is merged into place t mod PLACES only.

    Mem(t) = [M(t - PLACES + 1), ..., M(t)],   M(t) = (1 - a_t) M(t - PLACES) + a_t h(t)

ccm-merge averages every step into all of its slots. Here the same number of slots is split among PLACES, and each slot
averages T / PLACES steps instead of T. Up to PLACES steps this is ccm-concat, and after that it does not grow.

    python train.py --data dialog --method examples/carousel.py --n 2
"""

from minccm.methods import Method

PLACES = 8  # with n = 2, as large as ccm-merge with n = 16

METHOD = Method(
    "carousel",
    f"{PLACES} places; each step is merged into one of them",
    attends=lambda q, k: k.is_slot & (q.step - k.step <= PLACES),
    merge_rate=lambda t: 1 / t,  # t counts the steps of one place
    stride=PLACES,
)
