"""Building cut layers, which talks to nobody: what is allocated, what is drawn, what is refused."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import init
from torch.utils._python_dispatch import TorchDispatchMode

from parallel import (
    ColumnParallelLinear,
    Mesh,
    ParallelEmbedding,
    RefusedError,
    RowParallelLinear,
    VocabParallelEmbedding,
)
from tests.distributed.uneven import ragged

SIZES = [1, 2, 4]
ROWS, COLUMNS = 16, 24
# Each layer with a full weight of [ROWS, COLUMNS], and the dimension along which it is cut.
LAYERS: dict[str, tuple[Callable[..., nn.Module], int]] = {
    "ColumnParallelLinear": (lambda **options: ColumnParallelLinear(COLUMNS, ROWS, **options), 0),
    "RowParallelLinear": (lambda **options: RowParallelLinear(COLUMNS, ROWS, **options), 1),
    "VocabParallelEmbedding": (lambda **options: VocabParallelEmbedding(ROWS, COLUMNS, **options), 0),
    "ParallelEmbedding": (lambda **options: ParallelEmbedding(ROWS, COLUMNS, **options), 1),
}
EVERY_LAYER = pytest.mark.parametrize("name", LAYERS)
EVERY_SIZE = pytest.mark.parametrize("size", SIZES)


class LargestTensor(TorchDispatchMode):
    """Keeps the size of the largest tensor that any operation made."""

    numel = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        if isinstance(made, Tensor):
            self.numel = max(self.numel, made.numel())
        return made


def uncut_draw(init_method: Callable[[Tensor], object]) -> Tensor:
    weight = torch.empty(ROWS, COLUMNS)
    init_method(weight)
    return weight


@EVERY_LAYER
@EVERY_SIZE
def test_on_meta_only_the_share_of_this_rank_is_made_and_nothing_is_drawn(name: str, size: int) -> None:
    make, dim = LAYERS[name]
    shape = [ROWS, COLUMNS]
    shape[dim] //= size
    before = torch.get_rng_state()
    for rank in range(size):
        with torch.device("meta"), LargestTensor() as largest:
            layer = make(mesh=Mesh(rank, size))
        assert {parameter.device.type for parameter in layer.parameters()} == {"meta"}
        assert list(layer.get_parameter("weight").shape) == shape
        assert largest.numel == ROWS * COLUMNS // size
    assert torch.equal(torch.get_rng_state(), before)


@EVERY_LAYER
@EVERY_SIZE
@pytest.mark.parametrize("init_method", [init.xavier_normal_, init.kaiming_uniform_])
def test_a_share_is_the_slice_of_what_the_uncut_weight_draws(
    name: str, size: int, init_method: Callable[[Tensor], object]
) -> None:
    make, dim = LAYERS[name]
    torch.manual_seed(11)
    wanted, wanted_next = uncut_draw(init_method), torch.rand(3)
    for rank in range(size):
        torch.manual_seed(11)
        weight = make(mesh=Mesh(rank, size), init_method=init_method).get_parameter("weight")
        assert torch.equal(weight, wanted.chunk(size, dim)[rank])
        # The layer after this one continues where the uncut model would.
        assert torch.equal(torch.rand(3), wanted_next)


@EVERY_LAYER
@pytest.mark.parametrize("size", [2, 3, 5])
def test_an_uneven_share_is_its_slice_of_what_the_uncut_weight_draws(name: str, size: int) -> None:
    make, dim = LAYERS[name]
    shares = ragged((ROWS, COLUMNS)[dim], size)
    torch.manual_seed(11)
    wanted = uncut_draw(init.xavier_normal_).split([own.size for own in shares], dim)
    for rank in range(size):
        torch.manual_seed(11)
        weight = make(mesh=Mesh(rank, size), shares=shares).get_parameter("weight")
        assert torch.equal(weight, wanted[rank])
        with torch.device("meta"), LargestTensor() as largest:
            assert make(mesh=Mesh(rank, size), shares=shares).get_parameter("weight").shape == wanted[rank].shape
        # A bias that is whole on every rank may be larger than a share of one number.
        assert largest.numel == max(wanted[rank].numel(), ROWS if name == "RowParallelLinear" else 0)


@pytest.mark.parametrize("name", ["ColumnParallelLinear", "RowParallelLinear"])
@EVERY_SIZE
def test_with_stride_2_a_share_has_its_part_of_both_fused_weights(name: str, size: int) -> None:
    make, dim = LAYERS[name]
    torch.manual_seed(11)
    first, second = uncut_draw(init.xavier_normal_).chunk(2, dim)
    for rank in range(size):
        torch.manual_seed(11)
        weight = make(mesh=Mesh(rank, size), stride=2).get_parameter("weight")
        assert torch.equal(weight, torch.cat((first.chunk(size, dim)[rank], second.chunk(size, dim)[rank]), dim))


@pytest.mark.parametrize("name", ["ColumnParallelLinear", "RowParallelLinear", "ParallelEmbedding"])
@EVERY_SIZE
def test_the_full_weight_is_kept_only_for_a_test_that_asks(name: str, size: int) -> None:
    make, _ = LAYERS[name]
    torch.manual_seed(11)
    wanted = uncut_draw(init.xavier_normal_)
    torch.manual_seed(11)
    kept = make(mesh=Mesh(size - 1, size), keep_master_weight_for_test=True)
    assert isinstance(kept.master_weight, Tensor)
    assert torch.equal(kept.master_weight, wanted)
    assert make(mesh=Mesh(size - 1, size)).master_weight is None


def test_biases_begin_at_zero_and_are_cut_only_with_the_columns() -> None:
    column, row = (
        ColumnParallelLinear(COLUMNS, ROWS, mesh=Mesh(1, 4)),
        RowParallelLinear(COLUMNS, ROWS, mesh=Mesh(1, 4)),
    )
    assert torch.equal(column.get_parameter("bias"), torch.zeros(ROWS // 4))
    assert torch.equal(row.get_parameter("bias"), torch.zeros(ROWS))
    assert ColumnParallelLinear(COLUMNS, ROWS, bias=False, mesh=Mesh(1, 4)).bias is None
    assert RowParallelLinear(COLUMNS, ROWS, bias=False, mesh=Mesh(1, 4)).bias is None


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda mesh: ColumnParallelLinear(8, 6, mesh=mesh), "6 output features over 4 ranks"),
        (lambda mesh: RowParallelLinear(6, 8, mesh=mesh), "6 input features over 4 ranks"),
        (lambda mesh: VocabParallelEmbedding(6, 8, mesh=mesh), "6 vocabulary entries over 4 ranks"),
        (lambda mesh: ParallelEmbedding(8, 6, mesh=mesh), "6 embedding dimensions over 4 ranks"),
    ],
)
def test_a_dimension_that_leaves_a_remainder_is_refused_by_name(make: Callable[[Mesh], nn.Module], text: str) -> None:
    with pytest.raises(RefusedError, match=f"^cannot split {text} evenly; choose an MP of 1, 2, 3 or 6$"):
        make(Mesh(0, 4))
