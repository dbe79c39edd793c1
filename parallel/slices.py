"""Which part of a dimension a rank owns: whole-number arithmetic, no tensors, no processes."""

from dataclasses import dataclass

from parallel.errors import RefusedError, one_of


@dataclass(frozen=True, slots=True)
class Slice:
    """The half-open range [start, stop) of a dimension."""

    start: int
    stop: int

    @property
    def size(self) -> int:
        return self.stop - self.start


def even_share(size: int, ranks: int, what: str) -> int:
    """`size` / `ranks`; RefusedError naming `what` where it leaves a remainder."""
    if size % ranks:
        divisors = [n for n in range(1, min(size, 64) + 1) if size % n == 0]
        raise RefusedError(f"cannot split {size} {what} over {ranks} ranks evenly; choose an MP of {one_of(divisors)}")
    return size // ranks


def share(size: int, rank: int, ranks: int, what: str) -> Slice:
    """The contiguous slice of a dimension of `size` that `rank` owns."""
    part = even_share(size, ranks, what)
    return Slice(rank * part, (rank + 1) * part)


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
