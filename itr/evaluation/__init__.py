"""From embeddings to recall at K."""
