"""Starts a job in several processes: local workers, or tasks of a Slurm cluster."""
