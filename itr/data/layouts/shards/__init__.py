"""WebDataset shards: reading tars, their cached index, and their samples."""
