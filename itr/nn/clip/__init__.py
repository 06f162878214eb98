"""CLIP's encoders and their weights."""
