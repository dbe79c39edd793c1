"""The cut embeddings against fairscale's and against nn.Embedding, to the last bit."""

from typing import Any

import pytest
import torch
from fairscale.nn.model_parallel import layers as fairscale_layers
from torch import Tensor, nn

import parallel
from parallel import ParallelEmbedding, RefusedError, VocabParallelEmbedding, World
from tests.distributed.exact import (
    fill_with_whole_numbers,
    own_part,
    require_equal,
    require_same_as_uncut,
    whole_numbers,
)
from tests.distributed.pool import Pool
from tests.distributed.uneven import on_uneven_sizes, ragged

VOCABULARY, DIM = 16, 8
EVERY_SIZE_BUT_ONE = pytest.mark.parametrize("ranks", [2, 4], indirect=True, ids="{}-ranks".format)


def some_ids() -> Tensor:
    """Every id once, so that each rank owns some of them, and some twice."""
    return torch.tensor([list(range(VOCABULARY)), [15, 0, 5, 5, 8, 7, 3, 11, 12, 4, 1, 9, 2, 10, 6, 13]])


def vocabulary_cut_is_the_uncut_one(world: World, options: dict[str, Any], with_fairscale: bool) -> None:
    layers: list[nn.Module] = [VocabParallelEmbedding(VOCABULARY, DIM, **options)]
    if with_fairscale:
        layers.append(fairscale_layers.VocabParallelEmbedding(VOCABULARY, DIM, **options))
    uncut, grad_y = nn.Embedding(VOCABULARY, DIM, **options), whole_numbers(2, VOCABULARY, DIM, seed=1)
    require_same_as_uncut(world.mesh, uncut, layers, some_ids(), grad_y, {"weight": 0})


def dimension_cut_is_the_uncut_one(world: World, options: dict[str, Any], with_fairscale: bool) -> None:
    layers: list[nn.Module] = [ParallelEmbedding(VOCABULARY, DIM, **options)]
    if with_fairscale:
        layers.append(fairscale_layers.ParallelEmbedding(VOCABULARY, DIM, **options))
    uncut, grad_y = nn.Embedding(VOCABULARY, DIM, **options), whole_numbers(2, VOCABULARY, DIM, seed=1)
    require_same_as_uncut(world.mesh, uncut, layers, some_ids(), grad_y, {"weight": 1})


def draws_the_same_weights(world: World, name: str) -> None:
    drawn = []
    for module in (parallel, fairscale_layers):
        torch.manual_seed(7)
        drawn.append(getattr(module, name)(VOCABULARY, DIM).weight.data)
    require_equal("weight", *drawn)


def rows_after_max_norm(world: World, ids: list[int]) -> None:
    uncut = nn.Embedding(VOCABULARY, DIM, max_norm=2.0)
    fill_with_whole_numbers(uncut)
    layer = VocabParallelEmbedding(VOCABULARY, DIM, max_norm=2.0)
    layer.load_state_dict({"weight": own_part(uncut.weight.data.clone(), 0, world.mesh)})
    with torch.no_grad():
        require_equal("output", layer(torch.tensor(ids)), uncut(torch.tensor(ids)))
    require_equal("weight", layer.weight.data, own_part(uncut.weight.data, 0, world.mesh))


def uneven_vocabulary_is_the_uncut_one(world: World, size: int, options: dict[str, Any]) -> None:
    shares = ragged(size, world.mesh.size)
    layer, uncut = VocabParallelEmbedding(size, DIM, shares=shares, **options), nn.Embedding(size, DIM, **options)
    ids = torch.tensor([list(range(size)), list(reversed(range(size)))])
    require_same_as_uncut(world.mesh, uncut, [layer], ids, whole_numbers(2, size, DIM, seed=1), {"weight": 0}, shares)


def uneven_dimension_is_the_uncut_one(world: World, size: int, options: dict[str, Any]) -> None:
    shares = ragged(size, world.mesh.size)
    layer, uncut = (
        ParallelEmbedding(VOCABULARY, size, shares=shares, **options),
        nn.Embedding(VOCABULARY, size, **options),
    )
    grad_y = whole_numbers(2, VOCABULARY, size, seed=1)
    require_same_as_uncut(world.mesh, uncut, [layer], some_ids(), grad_y, {"weight": 1}, shares)


def refusal_of_max_norm(world: World) -> str:
    try:
        ParallelEmbedding(VOCABULARY, DIM, max_norm=1.0)
    except RefusedError as error:
        return str(error)
    return "accepted"


def test_vocab_parallel_embedding_is_fairscales_and_the_uncut_embedding(ranks: Pool) -> None:
    ranks.run(vocabulary_cut_is_the_uncut_one, {}, True)


@pytest.mark.parametrize("padding_idx", [0, 5, 15, -1, -16])
def test_vocab_parallel_embedding_pads_as_the_uncut_embedding(ranks: Pool, padding_idx: int) -> None:
    # Not against fairscale, which takes padding_idx for a row of this rank's share.
    ranks.run(vocabulary_cut_is_the_uncut_one, {"padding_idx": padding_idx}, False)


@pytest.mark.parametrize("option", ["scale_grad_by_freq", "sparse"])
def test_vocab_parallel_embedding_keeps_the_options_of_the_uncut_embedding(ranks: Pool, option: str) -> None:
    # Every id occurs twice, so dividing by the frequency is exact.
    ranks.run(vocabulary_cut_is_the_uncut_one, {option: True}, False)


def test_vocab_parallel_embedding_renormalises_only_the_rows_that_are_looked_up(ranks: Pool) -> None:
    ranks.run(rows_after_max_norm, [1, 2, 5, 7, 9, 13, 15])


@pytest.mark.parametrize("padding_idx", [None, 0, 5, -1])
def test_parallel_embedding_is_fairscales_and_the_uncut_embedding(ranks: Pool, padding_idx: int | None) -> None:
    ranks.run(dimension_cut_is_the_uncut_one, {"padding_idx": padding_idx}, True)


@pytest.mark.parametrize("option", ["scale_grad_by_freq", "sparse"])
def test_parallel_embedding_keeps_the_options_of_the_uncut_embedding(ranks: Pool, option: str) -> None:
    ranks.run(dimension_cut_is_the_uncut_one, {option: True}, False)


@pytest.mark.parametrize("name", ["VocabParallelEmbedding", "ParallelEmbedding"])
def test_the_same_seed_draws_the_same_embedding_as_fairscale(ranks: Pool, name: str) -> None:
    ranks.run(draws_the_same_weights, name)


@EVERY_SIZE_BUT_ONE
def test_max_norm_is_refused_where_each_rank_sees_a_part_of_every_row(ranks: Pool) -> None:
    assert (
        ranks.run(refusal_of_max_norm)
        == [
            f"max_norm=1.0 cannot work in ParallelEmbedding at MP {ranks.size}: each rank holds a part of every row; "
            "use VocabParallelEmbedding"
        ]
        * ranks.size
    )


# The last number pads from the last rank, -7 from the first where there are 7.
@on_uneven_sizes
@pytest.mark.parametrize(
    "options", [{}, {"padding_idx": 6}, {"padding_idx": -7}, {"scale_grad_by_freq": True}], ids=str
)
def test_a_vocabulary_cut_unevenly_is_the_uncut_embedding(ranks: Pool, size: int, options: dict[str, Any]) -> None:
    ranks.run(uneven_vocabulary_is_the_uncut_one, size, options)


@on_uneven_sizes
@pytest.mark.parametrize("options", [{}, {"padding_idx": 5}, {"sparse": True}], ids=str)
def test_a_dimension_cut_unevenly_is_the_uncut_embedding(ranks: Pool, size: int, options: dict[str, Any]) -> None:
    ranks.run(uneven_dimension_is_the_uncut_one, size, options)
