"""Processes, configuration and the command line."""
