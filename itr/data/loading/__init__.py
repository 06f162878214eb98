"""Splits to batches."""
