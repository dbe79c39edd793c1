"""Prompts in, answers out: the commands that run the model."""
