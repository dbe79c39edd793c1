"""The launchers of a run's hosts: how they find each other, and what they tell each other."""
