"""Results: trackers, result files, tables, comparisons and gallery pages."""
