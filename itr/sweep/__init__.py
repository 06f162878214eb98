"""Sweeps: files in the format of Weights & Biases, run here by a pool of processes."""
