"""Checkpoint folders and their files, in Meta's and other layouts: looked at, checked, read, cut, written."""
