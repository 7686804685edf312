"""minccm: Compressed Context Memory (ICLR 2024, arXiv 2312.03414) in plain PyTorch.

The core is seven files, in reading order:

    methods.py     the methods, as data; the attention rule; merge weights
    sequence.py    a sample as tokens, positions, token info and loss weights; a padded batch
    lora.py        conditional LoRA, which acts on COMP tokens only
    model.py       LLaMA; its argument `kv` is all that it knows of memory
    parallel.py    training: the whole recursion as one forward pass
    memory.py      Mem(t): append, merge, drop
    session.py     inference: read, compress, answer

The core imports only torch and itself. Around it: minccm.io reads and writes files, minccm.fast computes the same
numbers faster, minccm.extra goes beyond the paper's method. docs/walkthrough.md goes through the core with examples.
"""
