"""What the ranks tell each other while they measure."""

from collections.abc import Sequence

import torch

from parallel import World
from parallel.collectives import all_gather_first_dim, all_reduce


def gather_numbers(world: World, own: Sequence[float]) -> list[list[float]]:
    """Every rank's numbers, as many of each, in order of rank. Collective."""
    numbers = torch.tensor([list(own)], dtype=torch.float64, device=world.device)
    everyone: list[list[float]] = all_gather_first_dim(numbers, world.mesh).tolist()
    return everyone


def synchronise(world: World) -> None:
    """Wait for the other ranks, and for what this rank's GPU has to do. Collective."""
    all_reduce(torch.zeros(1, device=world.device), world.mesh)
    if world.device.type == "cuda":
        torch.cuda.synchronize(world.device)
