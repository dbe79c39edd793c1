"""The processes of a run: who starts them, what each does, how each ends."""
