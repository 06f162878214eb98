"""Models: one file (or folder) per method, in the paper's order."""
