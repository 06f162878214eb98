"""Commands that write or measure datasets."""
