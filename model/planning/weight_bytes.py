"""Bytes of each rank's weights, plain or quantised. Arithmetic only; no torch."""

from collections import Counter
from dataclasses import dataclass, replace
from functools import lru_cache
from math import prod

from model.cuts import Weight, all_weights
from model.params import Params
from model.quantisation import bytes_of, format_of
from model.split import Split
from parallel.kernels.formats import Quantisation


@dataclass(slots=True)
class WeightBytes:
    """A rank's weights in bytes: all, those that are quantised, how much more these would be in the dtype of the
    run, and the largest of a layer's and `output` in that."""

    used: int = 0
    quantised: int = 0
    saved: int = 0
    written_out: int = 0
    written_output: int = 0

    def take(self, weight: Weight, shape: tuple[int, ...], chosen: Quantisation, count: int, itemsize: int) -> None:
        """Count a slice of this shape, so many times."""
        used_bytes = bytes_of(shape, chosen, itemsize)
        self.used += count * used_bytes
        if chosen == "none":
            return
        plain_bytes = prod(shape) * itemsize
        self.quantised += count * used_bytes
        self.saved += count * (plain_bytes - used_bytes)
        if weight.axis == "vocabulary":
            self.written_output = plain_bytes
        else:
            self.written_out = max(self.written_out, plain_bytes)


def weights_of(
    params: Params, embedding_dim: int, split: Split, itemsize: int, quantize: Quantisation
) -> list[WeightBytes]:
    """Each rank's slices of all weights."""
    found = [WeightBytes() for _ in range(split.mp)]
    for (weight, chosen), count in _distinct_weights(params, embedding_dim, quantize).items():
        for own, part in zip(found, weight.slices(split), strict=True):
            own.take(weight, weight.shape_of(part), chosen, count, itemsize)
    return found


@lru_cache(maxsize=4)
def _distinct_weights(
    params: Params, embedding_dim: int, quantize: Quantisation
) -> Counter[tuple[Weight, Quantisation]]:
    """How many weights there are of each shape, cut and format; layers differ in their names only."""
    return Counter(
        (replace(weight, name=""), format_of(weight.name, quantize)) for weight in all_weights(params, embedding_dim)
    )
