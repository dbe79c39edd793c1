"""fairscale's registry of groups and our mesh: one and the same, and refused where they cannot be used."""

import time
from datetime import timedelta

import pytest
import torch.distributed as dist
from fairscale.nn.model_parallel import initialize as fairscale_registry
from torch import nn

from parallel import (
    ColumnParallelLinear,
    World,
    current_mesh,
    destroy_model_parallel,
    initialize_model_parallel,
    start_world,
)
from parallel.collectives import all_reduce, broadcast
from tests.distributed.exact import require_same_as_uncut, whole_numbers
from tests.distributed.pool import Pool
from tests.distributed.verdicts import Verdict, the_same_on_all, verdict

SEVERAL = pytest.mark.parametrize("ranks", [2, 4], indirect=True, ids="{}-ranks".format)
TWO = pytest.mark.parametrize("ranks", [2], indirect=True, ids="{}-ranks".format)
FOUR = pytest.mark.parametrize("ranks", [4], indirect=True, ids="{}-ranks".format)


def registry_and_mesh(world: World) -> dict[str, object]:
    mesh = current_mesh()
    return {
        "world": (world.mesh.rank, world.mesh.size),
        "mesh": (mesh.rank, mesh.size),
        "fairscale": (
            fairscale_registry.get_model_parallel_rank(),
            fairscale_registry.get_model_parallel_world_size(),
        ),
        "same group": mesh.group is fairscale_registry.get_model_parallel_group(),
        "backend": dist.get_backend(mesh.group),
    }


def initialize_anew(world: World, size: int) -> tuple[Verdict, int]:
    """What `initialize_model_parallel(size)` says beside the groups that stand, and the size after."""
    return verdict(lambda: initialize_model_parallel(size)), fairscale_registry.get_model_parallel_world_size()


def without_registry(world: World) -> Verdict:
    destroy_model_parallel()
    try:
        return verdict(lambda: ColumnParallelLinear(4, 4))
    finally:
        initialize_model_parallel(world.env.world_size)


def waits_in_a_collective(world: World) -> tuple[Verdict, float]:
    """How a sum ends, and after how many seconds, where the last rank stays away for longer than is allowed."""
    destroy_model_parallel()
    initialize_model_parallel(world.env.world_size, timedelta(seconds=0.5))
    begin = time.monotonic()
    try:
        if world.env.rank == world.env.world_size - 1:
            time.sleep(1.0)
            return ("stayed away", ""), 0.0
        found = verdict(lambda: all_reduce(whole_numbers(1), current_mesh()))
        return found, time.monotonic() - begin
    finally:
        destroy_model_parallel()
        initialize_model_parallel(world.env.world_size)


def in_two_halves(world: World) -> Verdict:
    """Two models of two ranks each: the layers follow the registry, and start_world refuses."""
    destroy_model_parallel()
    initialize_model_parallel(2)
    try:
        mesh, rank = current_mesh(), dist.get_rank()
        assert (mesh.rank, mesh.size) == (rank % 2, 2), mesh
        first = broadcast(whole_numbers(1) * 0 + rank, mesh)
        assert first.item() == rank - rank % 2, first
        layer, x, grad_y = ColumnParallelLinear(4, 8), whole_numbers(3, 4, seed=1), whole_numbers(3, 8, seed=2)
        require_same_as_uncut(mesh, nn.Linear(4, 8), [layer], x, grad_y, {"weight": 0, "bias": 0})
        return verdict(start_world)
    finally:
        destroy_model_parallel()
        initialize_model_parallel(world.env.world_size)


@SEVERAL
def test_fairscales_registry_and_our_mesh_are_one(ranks: Pool) -> None:
    for rank, found in enumerate(ranks.run(registry_and_mesh)):
        place = (rank, ranks.size)
        assert found == {"world": place, "mesh": place, "fairscale": place, "same group": True, "backend": "gloo"}


@SEVERAL
def test_a_size_that_does_not_divide_the_world_is_refused_and_the_registry_stays(ranks: Pool) -> None:
    refused, size_after = ranks.run(initialize_anew, 3)[0]
    assert refused == (
        "RefusedError",
        f"model_parallel_size=3 does not divide the world size of {ranks.size}; "
        "give one that does, or start another number of ranks",
    )
    assert size_after == ranks.size


@SEVERAL
def test_a_layer_without_a_registry_is_refused_rather_than_built_whole(ranks: Pool) -> None:
    assert the_same_on_all(ranks.run(without_registry)) == (
        "RefusedError",
        f"a process group of {ranks.size} ranks is there, but no model-parallel group; "
        "call parallel.initialize_model_parallel(size) on every rank first",
    )


@TWO
def test_a_collective_waits_for_an_absent_rank_no_longer_than_it_is_allowed_to(ranks: Pool) -> None:
    (kind, text), seconds = ranks.run(waits_in_a_collective)[0]
    assert kind == "RuntimeError"
    assert "500ms" in text
    assert seconds < 5


@FOUR
def test_two_models_of_two_ranks_compute_apart_but_start_world_refuses_them(ranks: Pool) -> None:
    assert the_same_on_all(ranks.run(in_two_halves)) == (
        "RefusedError",
        "the model-parallel group has 2 of 4 ranks; shardrun runs one model over all ranks: "
        "initialize_model_parallel(4), or start 2 ranks",
    )


@SEVERAL
def test_starting_prints_nothing_on_stdout(ranks: Pool) -> None:
    ranks.run(registry_and_mesh)
    assert [ranks.printed(rank, "stdout") for rank in range(ranks.size)] == [""] * ranks.size
    assert f"> initializing model parallel with size {ranks.size}" in ranks.printed(0, "stderr")
