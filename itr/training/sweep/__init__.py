"""Sweeps: the file that Weights & Biases reads, run here by a pool of processes, to a table."""
