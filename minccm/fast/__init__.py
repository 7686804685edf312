"""The same numbers as the plain core, faster. Each idea has a file; tests/test_fast_equals_plain.py compares them.

Training: step.py is the only file that train.py knows. It uses packing, driver (with block_mask, sparse_merge, rows and
fused), graphs and distributed. Inference: conversations.py, with inference, kernels, fused and graphs.
"""
