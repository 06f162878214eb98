"""What is checked in a split before training."""
