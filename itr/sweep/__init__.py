"""Sweeps: files in the format of Weights & Biases, run by a local pool of processes."""
