"""Where numbers go: trackers, files, tables."""
