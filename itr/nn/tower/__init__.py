"""Pre-trained towers by name, from transformers and open_clip: what they read and their weights."""
