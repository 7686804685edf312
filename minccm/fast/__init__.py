"""The same numbers as the plain core, faster. Each idea has a file; tests/test_fast_equals_plain.py compares them.

Training: packing, block_mask, sparse_merge, rows, fused, driver, graphs, distributed; step.py is the only one that
train.py knows.
"""
