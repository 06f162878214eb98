"""Writes trained models in the layouts of other libraries."""
