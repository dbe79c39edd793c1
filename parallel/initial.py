"""Initial values of a cut weight: the slice of what the uncut weight would draw."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from parallel.slices import Slice

InitMethod = Callable[[Tensor], object]


def new_weight(
    full_shape: tuple[int, int], dim: int, owned: list[Slice], init_method: InitMethod
) -> tuple[nn.Parameter, Tensor | None]:
    """This rank's share of a weight of `full_shape` cut along `dim`, and the full weight that was drawn.

    On the meta device nothing is drawn and the second is None. Elsewhere every rank draws the full
    weight from its own random numbers, so the shares fit together where every rank has the same seed.
    """
    local_shape = list(full_shape)
    local_shape[dim] = sum(own.size for own in owned)
    if torch.get_default_device().type == "meta":
        return nn.Parameter(torch.empty(local_shape)), None
    master = torch.empty(full_shape)
    init_method(master)
    if local_shape == list(full_shape):
        return nn.Parameter(master), master
    parts = [master.narrow(dim, own.start, own.size) for own in owned]
    return nn.Parameter(torch.cat(parts, dim)), master
