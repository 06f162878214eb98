"""``itr data check``: reports what a folder holds and what is wrong with it."""
