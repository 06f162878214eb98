"""Datasets: from files on disk to records and batches."""
