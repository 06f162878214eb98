"""Pictures and region features to tensors."""
