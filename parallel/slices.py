"""Which part of a dimension a rank owns: whole-number arithmetic, no tensors, no processes."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import gcd

from parallel.errors import RefusedError, one_of

# Uneven shares are dealt in blocks of this size where they can be: 32 bytes of bfloat16, which kernels like.
_BLOCK = 16


@dataclass(frozen=True, slots=True)
class Slice:
    """The half-open range [start, stop) of a dimension."""

    start: int
    stop: int

    @property
    def size(self) -> int:
        return self.stop - self.start

    def __mul__(self, unit: int) -> "Slice":
        """The same range counted in parts, where each counted thing has `unit` parts."""
        return Slice(self.start * unit, self.stop * unit)

    def within(self, other: "Slice") -> "Slice":
        """What both have in common; empty where they have nothing."""
        start = max(self.start, other.start)
        return Slice(start, max(start, min(self.stop, other.stop)))

    def from_start_of(self, other: "Slice") -> "Slice":
        """The same range, counted from where `other` starts."""
        return Slice(self.start - other.start, self.stop - other.start)


def even_share(size: int, ranks: int, what: str) -> int:
    """`size` / `ranks`; RefusedError naming `what` where it leaves a remainder."""
    if size % ranks:
        divisors = [n for n in range(1, min(size, 64) + 1) if size % n == 0]
        raise RefusedError(f"cannot split {size} {what} over {ranks} ranks evenly; choose an MP of {one_of(divisors)}")
    return size // ranks


def share(size: int, rank: int, ranks: int, what: str) -> Slice:
    """The contiguous slice of a dimension of `size` that `rank` owns, where it goes evenly."""
    part = even_share(size, ranks, what)
    return Slice(rank * part, (rank + 1) * part)


def deal(count: int, ranks: int) -> tuple[Slice, ...]:
    """`count` things dealt out in order; where it does not go evenly the first ranks have one more."""
    each, more = divmod(count, ranks)
    starts = [rank * each + min(rank, more) for rank in range(ranks + 1)]
    return tuple(Slice(start, stop) for start, stop in pairwise(starts))


def deal_numbers(size: int, ranks: int) -> tuple[Slice, ...]:
    """A dimension dealt out: evenly where it can be, else in blocks that kernels like.

    The block is the largest power of two, up to 16, that divides `size`; single numbers where there are
    fewer blocks than ranks.
    """
    block = gcd(size, _BLOCK)
    if size % ranks == 0 or size // block < ranks:
        return deal(size, ranks)
    return tuple(own * block for own in deal(size // block, ranks))


def strided_shares(size: int, rank: int, ranks: int, stride: int, what: str) -> list[Slice]:
    """The `stride` slices that `rank` owns where `stride` weights stand fused along the dimension.

    Stride 1 is `share`. With stride 2 (say a fused w1/w3) every rank takes its part of each weight,
    as fairscale's `stride` does (fairscale 0.4.13, nn/model_parallel/layers.py).
    """
    if stride > 1 and size % (stride * ranks):
        raise RefusedError(f"cannot split {size} {what}, which are {stride} weights fused, over {ranks} ranks evenly")
    part = even_share(size, ranks, what) // stride
    firsts = [(block * ranks + rank) * part for block in range(stride)]
    return [Slice(first, first + part) for first in firsts]


def cover(wanted: Slice, held: Sequence[Slice], first: int = 0) -> list[tuple[int, Slice]]:
    """Who of `held` gives which part of `wanted`: (index, part) in order, each number once.

    Where several hold the same part, index `first` gives it if it holds it, else the lowest. AssertionError
    where a part is held by nobody.
    """
    found: list[tuple[int, Slice]] = []
    place = wanted.start
    order = [first, *range(len(held))] if first < len(held) else range(len(held))
    while place < wanted.stop:
        index = next((i for i in order if held[i].start <= place < held[i].stop), None)
        assert index is not None, f"nobody holds {place} of {wanted}"
        stop = min(held[index].stop, wanted.stop)
        found.append((index, Slice(place, stop)))
        place = stop
    return found
