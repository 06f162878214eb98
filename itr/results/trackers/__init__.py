"""Trackers: ``metrics.jsonl`` and Weights & Biases."""
