"""Tasks: what is read, what is measured, and on what a checkpoint is selected."""
