"""A memory of constant size without end: the COMP pairs of the last RECENT steps, nothing older.

    Mem(t) = [h(t - RECENT + 1), ..., h(t)]

No mean is taken, so nothing is diluted as the conversation grows. Keys are rotated and RoPE is relative, so the memory
looks at step 1,000 as it does at step 20. An adapter of ccm-concat needs no more training:

    python -m experiments.endless --method examples/sliding.py
"""

from minccm.methods import Method

RECENT = 16  # steps: 32 pairs with n = 2, and 64 with n = 4

METHOD = Method(
    "sliding",
    f"as ccm-concat, but only the last {RECENT} steps",
    attends=lambda q, k: k.is_comp & (q.step - k.step <= RECENT),
)
