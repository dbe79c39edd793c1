"""Slurm: sbatch scripts and its commands."""
