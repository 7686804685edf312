"""minccm: Compressed Context Memory (ICLR 2024, arXiv 2312.03414), from scratch and short.

Read in this order: methods (the idea, as data), layout, mask, lora, model, memory, online.
"""
