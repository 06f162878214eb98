"""Loading: from a split to batches."""
