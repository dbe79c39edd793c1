"""Shares of a dimension that differ from rank to rank."""

from collections.abc import Callable

import pytest

from parallel.slices import Slice

# What none of 2, 3 and 4 ranks divides.
_SIZES = [7, 13]


def on_uneven_sizes(test: Callable[..., None]) -> Callable[..., None]:
    """Runs a test with each odd `size` on 2, 3 and 4 `ranks`."""
    each_size = pytest.mark.parametrize("size", _SIZES)
    return pytest.mark.parametrize("ranks", [2, 3, 4], indirect=True, ids="{}-ranks".format)(each_size(test))


def ragged(size: int, ranks: int) -> list[Slice]:
    """Shares in order, the smallest a single number, the second taking what the others leave."""
    sizes = list(range(1, ranks))
    sizes.insert(1, size - sum(sizes))
    starts = [sum(sizes[:rank]) for rank in range(ranks)]
    return [Slice(start, start + own) for start, own in zip(starts, sizes, strict=True)]
