"""Losses over a score matrix."""
