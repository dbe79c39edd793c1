"""What a run will take, told before anything is loaded: memory, traffic, what fits."""
