"""An experiment suite for image-text retrieval: published methods, one trainer, one evaluator."""

__version__ = "0.1.0"
