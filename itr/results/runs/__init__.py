"""The run directories below a folder: their states, and what can be done with them."""
