"""A rank's place among the ranks that share one model."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch.distributed as dist

from parallel import registry
from parallel.errors import RefusedError

if TYPE_CHECKING:
    from parallel.exchange import Exchange


@dataclass(frozen=True, slots=True)
class Mesh:
    """Rank `rank` of `size` model-parallel ranks; `group` carries their collectives, and `exchange` those that it can
    where they share memory.

    Size 1 needs no group. A larger mesh without a group is for arithmetic alone (which slice would
    rank 3 of 8 own?): its layers can be built, and a collective on it is a mistake of ours.
    """

    rank: int = 0
    size: int = 1
    group: dist.ProcessGroup | None = None
    exchange: "Exchange | None" = None

    def __post_init__(self) -> None:
        assert 0 <= self.rank < self.size, f"rank {self.rank} of {self.size}"

    @property
    def alone(self) -> bool:
        return self.size == 1


def current_mesh() -> Mesh:
    """The mesh of fairscale's registry; rank 0 of 1 where there is one process and no registry.

    Raises RefusedError where a process group of several ranks is there but no registry: a layer
    built then would hold the whole weight on every rank.
    """
    if registry.is_initialized():
        group = registry.model_parallel_group()
        return Mesh(dist.get_rank(group), dist.get_world_size(group), group)
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        raise RefusedError(
            f"a process group of {dist.get_world_size()} ranks is there, but no model-parallel group; "
            "call parallel.initialize_model_parallel(size) on every rank first"
        )
    return Mesh()
