"""What lies on disk, as records and batches."""
