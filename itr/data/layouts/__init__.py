"""Readers of the dataset layouts that people have on disk."""
