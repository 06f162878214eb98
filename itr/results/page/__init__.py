"""One static page of all runs: a table, curves, differences, galleries, paper tables, sweeps."""
