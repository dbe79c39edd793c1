"""The `bench` command: how fast a model is here, beside what the machine could do."""
