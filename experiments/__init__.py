"""Everything that is measured, one module for each experiment: python -m experiments.NAME --help."""
