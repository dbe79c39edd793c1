"""A rank's place, and what a world of one process does."""

import pytest

from parallel import Mesh, RefusedError, World, current_mesh
from parallel.environment import Environment, Placement


def world_of_one() -> World:
    return World(Environment(), Placement(device="cpu", backend=None, threads=1, reason=""), None)


def refuse() -> None:
    raise RefusedError("the folder is empty")


def test_without_ranks_the_mesh_is_rank_0_of_1() -> None:
    assert current_mesh() == Mesh(0, 1)
    assert current_mesh().alone
    assert not Mesh(1, 2).alone


@pytest.mark.parametrize(("rank", "size"), [(2, 2), (-1, 2), (0, 0)])
def test_a_rank_outside_of_the_mesh_is_a_mistake_of_ours(rank: int, size: int) -> None:
    with pytest.raises(AssertionError, match=f"rank {rank} of {size}"):
        Mesh(rank, size)


def test_one_process_does_together_what_it_does_alone() -> None:
    assert world_of_one().together("reading", lambda: 7) == 7
    with pytest.raises(RefusedError, match=r"^the folder is empty$"):
        world_of_one().together("reading", refuse)


def test_one_process_agrees_with_itself_and_leaves_without_ado() -> None:
    world = world_of_one()
    world.agree("at the start", {"seed": 1})
    world.close()
    assert world.mesh == Mesh()
