"""Importers and exporters of the authors' checkpoints: one module per method."""
