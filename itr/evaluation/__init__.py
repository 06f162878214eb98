"""Evaluation: embeddings or scores to ranks, recalls and statistics."""
