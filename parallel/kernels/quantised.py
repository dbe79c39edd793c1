"""Weights as small whole numbers, which take a half or a quarter of the memory and of the time to read them.

- int8: numbers of -127 to 127 with a scale for each row (output channel).
- int4: groups of 64 numbers of a row; a number is `scale * whole + offset`, whole of 0 to 15.

A quantised weight stands where the plain one stood, as the layer's `weight`. Only forward; no gradients.
"""

from abc import abstractmethod
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from parallel.kernels.formats import GROUP

# Rows are converted in blocks of about so many numbers. On a CPU these stay in its cache, and larger ones would leave
# the heap full of holes; a GPU wants enough to be busy.
_BLOCK_NUMBERS = {"cpu": 2**18, "cuda": 2**24}
# Stands for a scale of 0, by which nothing can be divided.
_LEAST_SCALE = 1e-30


class QuantisedWeight(nn.Module):
    """A weight [out, in] in whole numbers. `numbers` and `scales` are its parameters; they have no gradient."""

    def __init__(self, numbers: Tensor, scales: Tensor, in_features: int) -> None:
        super().__init__()
        self.numbers = nn.Parameter(numbers, requires_grad=False)
        self.scales = nn.Parameter(scales, requires_grad=False)
        self.in_features = in_features

    @property
    def out_features(self) -> int:
        return len(self.numbers)

    @property
    def shape(self) -> torch.Size:
        return torch.Size((self.out_features, self.in_features))

    def dequantised(self, dtype: torch.dtype) -> Tensor:
        """The plain weight [out, in] that this stands for."""
        plain = self.numbers.new_empty(self.shape, dtype=dtype)
        for rows in _blocks(plain):
            plain[rows] = self._rows(rows)
        return plain

    @abstractmethod
    def _rows(self, rows: slice) -> Tensor:
        """Rows of the plain weight, in float32."""


class Int8Weight(QuantisedWeight):
    """`numbers` int8 [out, in], `scales` float32 [out]."""

    @staticmethod
    def of(weight: Tensor, largest: Tensor | None = None) -> "Int8Weight":
        """The nearest to `weight` [out, in]. `largest` [out]: of each row's numbers by size, where this is only a
        part of the row; so all parts of a row have one scale, at every MP."""
        scales = (largest_of_rows(weight) if largest is None else largest) / 127
        numbers = torch.empty(weight.shape, dtype=torch.int8, device=weight.device)
        for rows in _blocks(weight):
            # No quotient is above 127 by half a step: `largest` is of this row.
            numbers[rows] = (weight[rows] / scales[rows].clamp_min(_LEAST_SCALE).unsqueeze(1)).round_()
        return Int8Weight(numbers, scales, weight.shape[1])

    def _rows(self, rows: slice) -> Tensor:
        return self.numbers[rows] * self.scales[rows].unsqueeze(1)


class Int4Weight(QuantisedWeight):
    """`numbers` uint8 [out, groups * 32]: byte i of a group holds number i in its lower half and number i + 32 in its
    upper one. `scales` bfloat16 [out, groups, 2]: scale and offset. The last group is filled up."""

    @staticmethod
    def of(weight: Tensor) -> "Int4Weight":
        """The nearest to `weight` [out, in]; groups count from its first column."""
        out, width = weight.shape
        groups = -(-width // GROUP)
        numbers = torch.empty(out, groups * GROUP // 2, dtype=torch.uint8, device=weight.device)
        scales = torch.empty(out, groups, 2, dtype=torch.bfloat16, device=weight.device)
        for rows in _blocks(weight):
            numbers[rows], scales[rows] = _four_bits(_grouped(weight[rows].float()))
        return Int4Weight(numbers, scales, width)

    def _rows(self, rows: slice) -> Tensor:
        halves = self.numbers[rows].view(-1, self.scales.shape[1], GROUP // 2)
        wholes = torch.cat([halves & 15, halves >> 4], 2)
        step, offset = torch.split(self.scales[rows].float(), 1, 2)
        return (wholes * step + offset).flatten(1)[:, : self.in_features]


Weight = Tensor | QuantisedWeight


def largest_of_rows(weight: Tensor) -> Tensor:
    """The largest number of each row by size, float32 [out]."""
    found = torch.empty(len(weight), device=weight.device)
    for rows in _blocks(weight):
        found[rows] = weight[rows].abs().amax(1)
    return found


def _blocks(weight: Tensor) -> Iterator[slice]:
    rows = max(1, _BLOCK_NUMBERS.get(weight.device.type, 2**18) // weight.shape[1])
    return (slice(start, start + rows) for start in range(0, len(weight), rows))


def _grouped(values: Tensor) -> Tensor:
    """[out, in] to [out, groups, GROUP]."""
    filling = -values.shape[1] % GROUP
    if filling:
        # With the last number, so that the filling does not widen the group's range.
        values = F.pad(values.unsqueeze(0), (0, filling), mode="replicate")[0]
    return values.reshape(len(values), -1, GROUP)


def _four_bits(groups: Tensor) -> tuple[Tensor, Tensor]:
    """[out, groups, GROUP] to numbers [out, groups * GROUP / 2], two a byte, and scales [out, groups, 2]."""
    low, high = groups.amin(2), groups.amax(2)
    scales = torch.stack([(high - low) / 15, low], 2).to(torch.bfloat16)
    step, offset = torch.split(scales.float(), 1, 2)
    # Beyond 0 and 15 by the rounding of the scales alone.
    steps = (groups - offset).div_(step.clamp_min(_LEAST_SCALE)).round_().clamp_(0, 15).to(torch.uint8)
    lower, upper = torch.split(steps, GROUP // 2, 2)
    return (upper << 4).bitwise_or_(lower).flatten(1), scales
