"""What SLURM and the local workers run."""
