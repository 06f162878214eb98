"""Checks of a split before training or evaluation."""
