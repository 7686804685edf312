"""What eval.py measures beside its table: one module for each of its other options."""
