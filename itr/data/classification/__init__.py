"""Classification datasets for zero-shot evaluation."""
