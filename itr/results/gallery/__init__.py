"""A page of what a run finds and misses."""
