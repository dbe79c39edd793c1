"""Settings: what there is to set, and the two ways in, flags and job files."""
