"""The embedded synthetic dataset."""
