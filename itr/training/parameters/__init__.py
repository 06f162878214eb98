"""Which parameters are trained, and an average of them."""
