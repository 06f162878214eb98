"""WebDataset shards: tar files, their index and their samples."""
