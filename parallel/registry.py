"""The one door to fairscale: its registry of model-parallel groups.

Other fairscale code in the same process sees the groups that we make, and we see those that it made.
Our layers are our own (docs/adr/0002-fairscale-registry-only.md).
"""

import contextlib
import sys
from datetime import timedelta

import torch.distributed as dist
from fairscale.nn.model_parallel import initialize as fairscale_initialize

from parallel.errors import RefusedError


def is_initialized() -> bool:
    """True where a model-parallel group stands in fairscale's registry."""
    return bool(fairscale_initialize.model_parallel_is_initialized())


def initialize_model_parallel(model_parallel_size: int, timeout: timedelta | None = None) -> None:
    """Make the groups and enter them in fairscale's registry. Collective.

    fairscale takes min(size, world size) in silence; here a size that does not divide the world is
    refused. Its prints go to stderr, since stdout belongs to results. `timeout`: how long a collective of
    the model-parallel group waits for a rank (fairscale leaves it at torch's half hour).
    """
    world_size = dist.get_world_size()
    if model_parallel_size < 1 or world_size % model_parallel_size:
        raise RefusedError(
            f"model_parallel_size={model_parallel_size} does not divide the world size of {world_size}; "
            "give one that does, or start another number of ranks"
        )
    with contextlib.redirect_stdout(sys.stderr):
        fairscale_initialize.initialize_model_parallel(model_parallel_size)
    if timeout is not None:
        dist.distributed_c10d._set_pg_timeout(timeout, model_parallel_group())


def model_parallel_group() -> dist.ProcessGroup:
    """The registered model-parallel group of this rank."""
    group: dist.ProcessGroup = fairscale_initialize.get_model_parallel_group()
    return group


def destroy_model_parallel() -> None:
    """Empty fairscale's registry. The process groups themselves stay."""
    fairscale_initialize.destroy_model_parallel()
