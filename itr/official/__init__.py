"""The authors' checkpoints and ours, both ways."""
