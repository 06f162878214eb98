"""Layers and modules that several methods share."""
