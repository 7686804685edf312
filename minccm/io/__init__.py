"""Files in and out: weights, adapters, tokenizers, saved memories, checkpoints. Files are untrusted."""
