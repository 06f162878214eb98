"""Real pictures with human captions, from Debian's clip art: ``itr data clipart``."""
