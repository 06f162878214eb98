"""One file a method, in the paper's order."""
