"""`itr data check`: what is on disk and what is wrong with it."""
