"""Each collective against what it means, worked out on every rank from all ranks' inputs."""

from collections.abc import Callable

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from parallel import Mesh, RefusedError, World
from parallel.collectives import (
    all_gather_last_dim,
    all_reduce,
    broadcast,
    copy_to_ranks,
    gather_from_ranks,
    reduce_from_ranks,
    scatter_to_ranks,
)
from tests.distributed.exact import require_equal, whole_numbers
from tests.distributed.pool import Pool
from tests.distributed.uneven import on_uneven_sizes, ragged

WIDTH = 8
# What each rank gets forward of everybody's inputs, and backward of everybody's gradients.
Meaning = Callable[[list[Tensor], int], Tensor]
PAIRS: dict[str, tuple[Callable[[Tensor, Mesh], Tensor], Meaning, Meaning]] = {}


def own(parts: list[Tensor], rank: int) -> Tensor:
    return parts[rank]


def total(parts: list[Tensor], rank: int) -> Tensor:
    return torch.stack(parts).sum(0)


def slice_of_own(parts: list[Tensor], rank: int) -> Tensor:
    return parts[rank].chunk(len(parts), -1)[rank]


def side_by_side(parts: list[Tensor], rank: int) -> Tensor:
    return torch.cat(parts, -1)


PAIRS["copy"] = (copy_to_ranks, own, total)
PAIRS["reduce"] = (reduce_from_ranks, total, own)
PAIRS["scatter"] = (scatter_to_ranks, slice_of_own, side_by_side)
PAIRS["gather"] = (gather_from_ranks, side_by_side, slice_of_own)


def everyones(mesh: Mesh, *shape: int, seed: int) -> list[Tensor]:
    return [whole_numbers(*shape, seed=seed + rank) for rank in range(mesh.size)]


def pair_does_what_it_says(world: World, name: str, contiguous: bool) -> None:
    mesh = world.mesh
    act, forward, backward = PAIRS[name]
    inputs = everyones(mesh, 2, 3, WIDTH, seed=10)
    if not contiguous:
        inputs = [x.transpose(0, 1) for x in inputs]
    x = inputs[mesh.rank].clone(memory_format=torch.preserve_format).requires_grad_()
    y = act(x, mesh)
    wanted = forward(inputs, mesh.rank)
    require_equal("forward", y.detach(), wanted)
    require_equal("input after the forward", x.detach(), inputs[mesh.rank])
    grads = everyones(mesh, *wanted.shape, seed=20)
    y.backward(grads[mesh.rank])
    assert x.grad is not None
    require_equal("backward", x.grad, backward(grads, mesh.rank))
    with torch.no_grad():
        require_equal("forward without autograd", act(inputs[mesh.rank].clone(), mesh), wanted)


def uneven_scatter_and_gather(world: World, size: int, contiguous: bool) -> None:
    mesh, shares = world.mesh, ragged(size, world.mesh.size)
    sizes = [own.size for own in shares]

    def both_ways(act: Callable[..., Tensor], x: Tensor, wanted: Tensor, grad_y: Tensor, wanted_grad: Tensor) -> None:
        x = (x if contiguous else x.transpose(0, 1).contiguous().transpose(0, 1)).requires_grad_()
        y = act(x, mesh, shares)
        require_equal("forward", y.detach(), wanted)
        y.backward(grad_y)
        assert x.grad is not None
        require_equal("backward", x.grad, wanted_grad)
        with torch.no_grad():
            require_equal("forward without autograd", act(x.detach(), mesh, shares), wanted)

    # Whole tensors, the same on all ranks, for what is scattered, and of each rank its own for what is gathered.
    x, grads = whole_numbers(2, 3, size, seed=1), [whole_numbers(2, 3, n, seed=40 + r) for r, n in enumerate(sizes)]
    both_ways(scatter_to_ranks, x, x.split(sizes, -1)[mesh.rank], grads[mesh.rank], torch.cat(grads, -1))
    parts = [whole_numbers(2, 3, n, seed=50 + r) for r, n in enumerate(sizes)]
    grad_y = whole_numbers(2, 3, size, seed=2)
    both_ways(gather_from_ranks, parts[mesh.rank], torch.cat(parts, -1), grad_y, grad_y.split(sizes, -1)[mesh.rank])
    for dtype in (torch.bfloat16, torch.int64):
        gathered = all_gather_last_dim(parts[mesh.rank].to(dtype), mesh, shares)
        require_equal("gather", gathered, torch.cat(parts, -1).to(dtype))
        vector = all_gather_last_dim(parts[mesh.rank][0, 0].to(dtype), mesh, shares)
        require_equal("gather of vectors", vector, torch.cat([part[0, 0] for part in parts]).to(dtype))


def copy_beside_another_use(world: World) -> None:
    mesh = world.mesh
    grads = everyones(mesh, 2, WIDTH, seed=20)
    x = whole_numbers(2, WIDTH).requires_grad_()
    (copy_to_ranks(x, mesh) + x).backward(grads[mesh.rank])
    assert x.grad is not None
    require_equal("gradient", x.grad, total(grads, mesh.rank) + grads[mesh.rank])


def plain_collectives(world: World) -> None:
    mesh = world.mesh
    for dtype in (torch.float32, torch.bfloat16, torch.int64):
        inputs = [x.to(dtype) for x in everyones(mesh, 3, WIDTH, seed=30)]
        mine = inputs[mesh.rank]
        require_equal("sum", all_reduce(mine.clone(), mesh), total(inputs, 0).to(dtype))
        require_equal("max", all_reduce(mine.clone(), mesh, dist.ReduceOp.MAX), torch.stack(inputs).amax(0))
        require_equal("gather", all_gather_last_dim(mine, mesh), torch.cat(inputs, -1))
        require_equal("gather of vectors", all_gather_last_dim(mine[0], mesh), torch.cat([x[0] for x in inputs]))
        given = mine.clone()
        assert broadcast(given, mesh) is given
        require_equal("broadcast", given, inputs[0])


def refusal_of_an_uneven_scatter(world: World) -> str:
    try:
        scatter_to_ranks(whole_numbers(2, 7), world.mesh)
    except RefusedError as error:
        return str(error)
    return "accepted"


@pytest.mark.parametrize("contiguous", [True, False], ids=["contiguous", "transposed"])
@pytest.mark.parametrize("name", sorted(PAIRS))
def test_a_pair_does_forward_and_backward_what_its_table_says(ranks: Pool, name: str, contiguous: bool) -> None:
    ranks.run(pair_does_what_it_says, name, contiguous)


@on_uneven_sizes
@pytest.mark.parametrize("contiguous", [True, False], ids=["contiguous", "transposed"])
def test_uneven_shares_are_scattered_and_gathered_in_order_of_rank(ranks: Pool, size: int, contiguous: bool) -> None:
    ranks.run(uneven_scatter_and_gather, size, contiguous)


def test_copy_leaves_the_gradient_of_another_branch_alone(ranks: Pool) -> None:
    ranks.run(copy_beside_another_use)


def test_sum_max_gather_and_broadcast_agree_for_floats_halves_and_integers(ranks: Pool) -> None:
    ranks.run(plain_collectives)


@pytest.mark.parametrize("ranks", [2, 4], indirect=True, ids="{}-ranks".format)
def test_columns_that_cannot_be_scattered_evenly_are_refused(ranks: Pool) -> None:
    wanted = f"cannot split 7 columns over {ranks.size} ranks evenly; choose an MP of 1 or 7"
    assert ranks.run(refusal_of_an_uneven_scatter) == [wanted] * ranks.size
