"""One seed on every rank."""

import torch


def seed_everything(seed: int) -> None:
    """Seed torch's generators, CPU and GPU. Every rank must be given the same seed: a cut layer's
    initial values are slices of what the uncut layer would draw."""
    torch.manual_seed(seed)
