"""The cut linear layers against fairscale's and against nn.Linear, to the last bit."""

from typing import Any

import pytest
import torch
from fairscale.nn.model_parallel import layers as fairscale_layers
from torch import nn

from parallel import ColumnParallelLinear, RowParallelLinear, World
from parallel.slices import Slice
from tests.distributed.exact import (
    fill_with_whole_numbers,
    forward_and_backward,
    own_part,
    require_equal,
    require_same_as_uncut,
    whole_numbers,
)
from tests.distributed.pool import Pool
from tests.distributed.uneven import on_uneven_sizes, ragged

IN, OUT = 16, 8
LAYERS: dict[str, tuple[Any, Any]] = {
    "column": (ColumnParallelLinear, fairscale_layers.ColumnParallelLinear),
    "row": (RowParallelLinear, fairscale_layers.RowParallelLinear),
}


def column_is_the_uncut_one(world: World, bias: bool, gather_output: bool) -> None:
    layers = [layer(IN, OUT, bias=bias, gather_output=gather_output) for layer in LAYERS["column"]]
    cuts = {"weight": 0, "bias": 0} | ({} if gather_output else {"output": -1})
    x, grad_y = whole_numbers(2, 3, IN, seed=1), whole_numbers(2, 3, OUT, seed=2)
    require_same_as_uncut(world.mesh, nn.Linear(IN, OUT, bias), layers, x, grad_y, cuts)


def row_is_the_uncut_one(world: World, bias: bool, input_is_parallel: bool) -> None:
    layers = [layer(IN, OUT, bias=bias, input_is_parallel=input_is_parallel) for layer in LAYERS["row"]]
    cuts = {"weight": 1} | ({"input": -1} if input_is_parallel else {})
    x, grad_y = whole_numbers(2, 3, IN, seed=1), whole_numbers(2, 3, OUT, seed=2)
    require_same_as_uncut(world.mesh, nn.Linear(IN, OUT, bias), layers, x, grad_y, cuts)


def feed_forward_is_the_uncut_one(world: World, frozen: bool) -> None:
    """Column into row, as in a transformer: one collective forward, one backward."""
    uncut = nn.Sequential(nn.Linear(IN, OUT), nn.ReLU(), nn.Linear(OUT, IN))
    cut = nn.Sequential(
        ColumnParallelLinear(IN, OUT, gather_output=False),
        nn.ReLU(),
        RowParallelLinear(OUT, IN, input_is_parallel=True),
    )
    for parameter in (*uncut.parameters(), *cut.parameters()):
        parameter.requires_grad_(not frozen)
    cuts = {"0.weight": 0, "0.bias": 0, "2.weight": 1}
    x, grad_y = whole_numbers(5, IN, seed=1), whole_numbers(5, IN, seed=2)
    require_same_as_uncut(world.mesh, uncut, [cut], x, grad_y, cuts)


def weights_learn_from_an_input_without_gradient(world: World) -> None:
    uncut, layer = nn.Linear(IN, OUT), ColumnParallelLinear(IN, OUT)
    fill_with_whole_numbers(uncut)
    layer.load_state_dict({name: own_part(value, 0, world.mesh) for name, value in uncut.state_dict().items()})
    x, grad_y = whole_numbers(5, IN, seed=1), whole_numbers(5, OUT, seed=2)
    wanted = forward_and_backward(uncut, x, grad_y)
    layer(x).backward(grad_y)
    assert layer.weight.grad is not None
    require_equal("gradient of weight", layer.weight.grad, own_part(wanted["gradient of weight"], 0, world.mesh))


def draws_the_same_weights(world: World, kind: str, stride: int) -> None:
    drawn = []
    for layer in LAYERS[kind]:
        torch.manual_seed(7)
        drawn.append(layer(IN, OUT, stride=stride, keep_master_weight_for_test=True))
    ours, theirs = drawn
    require_equal("weight", ours.weight.data, theirs.weight.data)
    require_equal("bias", ours.bias.data, theirs.bias.data)
    require_equal("kept master weight", ours.master_weight.data, theirs.master_weight.data)
    require_equal("gathered master weight", ours.get_master_weight(), theirs.get_master_weight())
    if stride == 1:
        require_equal("gathered and kept", ours.get_master_weight(), ours.master_weight.data)


def uneven_column_is_the_uncut_one(world: World, size: int, gather_output: bool) -> None:
    shares = ragged(size, world.mesh.size)
    layer = ColumnParallelLinear(IN, size, gather_output=gather_output, shares=shares)
    cuts = {"weight": 0, "bias": 0} | ({} if gather_output else {"output": -1})
    x, grad_y = whole_numbers(2, 3, IN, seed=1), whole_numbers(2, 3, size, seed=2)
    require_same_as_uncut(world.mesh, nn.Linear(IN, size), [layer], x, grad_y, cuts, shares)


def uneven_row_is_the_uncut_one(world: World, size: int, input_is_parallel: bool) -> None:
    shares = ragged(size, world.mesh.size)
    layer = RowParallelLinear(size, OUT, input_is_parallel=input_is_parallel, shares=shares)
    cuts = {"weight": 1} | ({"input": -1} if input_is_parallel else {})
    x, grad_y = whole_numbers(2, 3, size, seed=1), whole_numbers(2, 3, OUT, seed=2)
    require_same_as_uncut(world.mesh, nn.Linear(size, OUT), [layer], x, grad_y, cuts, shares)


def uneven_feed_forward_is_the_uncut_one(world: World, size: int) -> None:
    shares = ragged(size, world.mesh.size)
    uncut = nn.Sequential(nn.Linear(IN, size), nn.ReLU(), nn.Linear(size, IN))
    cut = nn.Sequential(
        ColumnParallelLinear(IN, size, gather_output=False, shares=shares),
        nn.ReLU(),
        RowParallelLinear(size, IN, input_is_parallel=True, shares=shares),
    )
    cuts = {"0.weight": 0, "0.bias": 0, "2.weight": 1}
    x, grad_y = whole_numbers(5, IN, seed=1), whole_numbers(5, IN, seed=2)
    require_same_as_uncut(world.mesh, uncut, [cut], x, grad_y, cuts, shares)


def master_weights_are_gathered_from_uneven_shares(world: World, size: int) -> None:
    shares = ragged(size, world.mesh.size)
    for make in (
        lambda **how: ColumnParallelLinear(IN, size, **how),
        lambda **how: RowParallelLinear(size, OUT, **how),
    ):
        layer = make(keep_master_weight_for_test=True, shares=shares)
        assert layer.master_weight is not None
        require_equal("gathered and kept", layer.get_master_weight(), layer.master_weight.data)


def overlapping_shares_give_each_rank_its_columns(world: World) -> None:
    """As KV heads that stand on two ranks: the forward pass needs no gathering."""
    mesh, uncut = world.mesh, nn.Linear(IN, OUT)
    fill_with_whole_numbers(uncut)
    shares = [Slice(rank // 2, rank // 2 + 1) * 4 for rank in range(mesh.size)]
    own = slice(shares[mesh.rank].start, shares[mesh.rank].stop)
    layer = ColumnParallelLinear(IN, OUT, gather_output=False, shares=shares)
    layer.load_state_dict({name: value[own] for name, value in uncut.state_dict().items()})
    x = whole_numbers(5, IN, seed=1)
    require_equal("output", layer(x).detach(), uncut(x).detach()[:, own])


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no-bias"])
@pytest.mark.parametrize("gather_output", [True, False], ids=["gathered", "cut"])
def test_column_parallel_linear_is_fairscales_and_the_uncut_linear(
    ranks: Pool, bias: bool, gather_output: bool
) -> None:
    ranks.run(column_is_the_uncut_one, bias, gather_output)


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no-bias"])
@pytest.mark.parametrize("input_is_parallel", [True, False], ids=["cut", "whole"])
def test_row_parallel_linear_is_fairscales_and_the_uncut_linear(
    ranks: Pool, bias: bool, input_is_parallel: bool
) -> None:
    ranks.run(row_is_the_uncut_one, bias, input_is_parallel)


@pytest.mark.parametrize("frozen", [False, True], ids=["trained", "frozen"])
def test_a_column_into_a_row_is_the_uncut_pair_even_with_frozen_weights(ranks: Pool, frozen: bool) -> None:
    ranks.run(feed_forward_is_the_uncut_one, frozen)


def test_weights_learn_from_an_input_that_has_no_gradient(ranks: Pool) -> None:
    ranks.run(weights_learn_from_an_input_without_gradient)


@pytest.mark.parametrize("stride", [1, 2], ids="stride-{}".format)
@pytest.mark.parametrize("kind", sorted(LAYERS))
def test_the_same_seed_draws_the_same_weights_as_fairscale(ranks: Pool, kind: str, stride: int) -> None:
    ranks.run(draws_the_same_weights, kind, stride)


@on_uneven_sizes
@pytest.mark.parametrize("gather_output", [True, False], ids=["gathered", "cut"])
def test_a_column_cut_unevenly_is_the_uncut_linear(ranks: Pool, size: int, gather_output: bool) -> None:
    ranks.run(uneven_column_is_the_uncut_one, size, gather_output)


@on_uneven_sizes
@pytest.mark.parametrize("input_is_parallel", [True, False], ids=["cut", "whole"])
def test_a_row_cut_unevenly_is_the_uncut_linear(ranks: Pool, size: int, input_is_parallel: bool) -> None:
    ranks.run(uneven_row_is_the_uncut_one, size, input_is_parallel)


@on_uneven_sizes
def test_an_uneven_column_into_an_uneven_row_is_the_uncut_pair(ranks: Pool, size: int) -> None:
    ranks.run(uneven_feed_forward_is_the_uncut_one, size)


@on_uneven_sizes
def test_the_full_weight_is_gathered_from_uneven_shares(ranks: Pool, size: int) -> None:
    ranks.run(master_weights_are_gathered_from_uneven_shares, size)


@pytest.mark.parametrize("ranks", [2, 4], indirect=True, ids="{}-ranks".format)
def test_columns_that_stand_on_two_ranks_are_computed_by_both(ranks: Pool) -> None:
    ranks.run(overlapping_shares_give_each_rank_its_columns)
