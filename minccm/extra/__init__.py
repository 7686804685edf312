"""Beyond the paper's core: streaming, recurrent training, distillation, curricula, and conversations."""
