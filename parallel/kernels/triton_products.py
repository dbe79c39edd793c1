"""Products of a few rows with weights on a GPU, at the pace of its memory: y = x W^T.

Every weight is read once, in vectors of 8 or 16 bytes, and multiplied with all rows in registers: with so few rows the
tensor cores would only wait for the memory. The sums are float32, in an order that depends neither on the number of
rows nor on the rows beside one. Each program makes some columns of y; a row of weights is spread over its threads.

Shapes: R rows of x, C columns of y (rows of weights) a program, N numbers of them (bytes, in int4) a tile, L lanes in
it: what one thread reads at once, as many numbers as 16 bytes of x hold.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import triton
import triton.language as tl
from torch import Tensor

from parallel.kernels.adjacent import joined
from parallel.kernels.formats import GROUP
from parallel.kernels.quantised import Int8Weight, QuantisedWeight, Weight

# Rows that are multiplied in one pass over the weights: more would not fit in the registers.
MOST_ROWS = 8
_PLAIN, _INT8, _INT4 = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2)
_GROUP_BYTES = tl.constexpr(GROUP // 2)
_LANE_BYTES = 16
_THREADS = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Tiling:
    """How a product is dealt out: columns of y a program, its warps, and how many lanes of a row of weights each of
    its threads reads at once."""

    columns: int
    warps: int = 4
    lanes: int = 1


def tiling_of(out: int, kind: int, gated: bool) -> Tiling:
    """Columns of one program share what it reads of x, as far as the registers go (read off what the compiler made for
    1 and 8 rows); but every multiprocessor wants several programs."""
    shared = 2 if gated or kind == _INT4.value else 4
    # `lanes` decide in which order numbers are added: they may depend on nothing but the kind.
    columns = shared if out >= 2048 else min(shared, 2) if out >= 1024 else 1
    return Tiling(columns=columns, lanes=2 if kind == _INT8.value else 1)


def products(x: Tensor, weights: Sequence[Weight], gated: bool = False, tiling: Tiling | None = None) -> Tensor:
    """x [..., in] with each weight [out, in], side by side: [..., sum of out]. `gated`: silu of the first product,
    times the second, [..., out]. The weights are read once for each `MOST_ROWS` rows."""
    x_RI = x.reshape(-1, x.shape[-1]).contiguous()
    matrices = [_matrix(weight) for weight in weights]
    pairs = [(matrices[0], matrices[1])] if gated else [(one, one) for one in _together(matrices)]
    y_RO = x.new_empty((len(x_RI), sum(first.out for first, _ in pairs)))
    for row in range(0, len(x_RI), MOST_ROWS):
        rows, column = slice(row, row + MOST_ROWS), 0
        for first, second in pairs:
            columns = slice(column, column := column + first.out)
            _launch(x_RI[rows], y_RO[rows, columns], first, second, gated, tiling)
    return y_RO.view(*x.shape[:-1], -1)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Matrix:
    """Weights as the kernel reads them. `scales`: int4's pairs of bfloat16 as whole numbers of 32 bits, so that one
    load brings both; of plain weights the numbers again."""

    numbers: Tensor
    scales: Tensor
    kind: int

    @property
    def out(self) -> int:
        return len(self.numbers)


def _matrix(weight: Weight) -> _Matrix:
    if not isinstance(weight, QuantisedWeight):
        return _Matrix(numbers=weight, scales=weight, kind=_PLAIN.value)
    if isinstance(weight, Int8Weight):
        return _Matrix(numbers=weight.numbers, scales=weight.scales, kind=_INT8.value)
    return _Matrix(numbers=weight.numbers, scales=weight.scales.view(torch.int32), kind=_INT4.value)


def _together(matrices: list[_Matrix]) -> list[_Matrix]:
    """One for all, where they stand behind one another in memory."""
    numbers, scales = joined([one.numbers for one in matrices]), joined([one.scales for one in matrices])
    if numbers is None or scales is None:
        return matrices
    return [replace(matrices[0], numbers=numbers, scales=scales)]


def _launch(x_RI: Tensor, y_RC: Tensor, first: _Matrix, second: _Matrix, gated: bool, tiling: Tiling | None) -> None:
    rows, width = x_RI.shape
    tiling = tiling or tiling_of(first.out, first.kind, gated)
    lane = _LANE_BYTES // x_RI.element_size()
    _multiply[(triton.cdiv(first.out, tiling.columns),)](
        x_RI, y_RC, first.numbers, first.scales, second.numbers, second.scales, first.out, y_RC.stride(0),
        WIDTH=width, ROWS=rows, KIND=first.kind, GATED=gated, COLUMNS=tiling.columns, LANE=lane,
        LANES=tiling.lanes * tiling.warps * _THREADS, num_warps=tiling.warps,
    )  # fmt: skip


@triton.jit
def _multiply(
    x: tl.tensor, y: tl.tensor, numbers: tl.tensor, scales: tl.tensor, more_numbers: tl.tensor,
    more_scales: tl.tensor, out: tl.tensor, stride: tl.tensor, WIDTH: tl.constexpr, ROWS: tl.constexpr,
    KIND: tl.constexpr, GATED: tl.constexpr, COLUMNS: tl.constexpr, LANE: tl.constexpr, LANES: tl.constexpr,
) -> None:  # fmt: skip
    """y [R, C] at `stride` = x [R, WIDTH] W^T; or, gated, silu of that, times what the second weights give."""
    column_C = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    sums = _zeros(ROWS, COLUMNS, LANES)
    more_sums = sums
    GROUPS: tl.constexpr = (WIDTH + 2 * _GROUP_BYTES - 1) // (2 * _GROUP_BYTES)
    LENGTH: tl.constexpr = GROUPS * _GROUP_BYTES if KIND == _INT4 else WIDTH
    for start in range(0, LENGTH, LANE * LANES):
        tile = _tile(numbers, scales, column_C, out, start, LENGTH, GROUPS, KIND, LANE, LANES)
        more_tile = tile
        if GATED:
            more_tile = _tile(more_numbers, more_scales, column_C, out, start, LENGTH, GROUPS, KIND, LANE, LANES)
        sums, more_sums = _added(sums, more_sums, tile, more_tile, x, start, WIDTH, ROWS, KIND, GATED, LANE, LANES)
    for row in tl.static_range(ROWS):
        found_C = _total(sums[row], scales, column_C, out, KIND)
        if GATED:
            found_C = found_C * tl.sigmoid(found_C) * _total(more_sums[row], more_scales, column_C, out, KIND)
        tl.store(y + row * stride + column_C, found_C.to(y.dtype.element_ty), column_C < out)


@triton.jit
def _zeros(ROWS: tl.constexpr, COLUMNS: tl.constexpr, LANES: tl.constexpr) -> tl.tuple:
    zeros: tl.tuple = ()
    for _row in tl.static_range(ROWS):
        zeros = zeros + (tl.zeros((COLUMNS, LANES), tl.float32),)
    return zeros


@triton.jit
def _added(
    sums: tl.tuple, more_sums: tl.tuple, tile: tl.tuple, more_tile: tl.tuple, x: tl.tensor, start: tl.tensor,
    WIDTH: tl.constexpr, ROWS: tl.constexpr, KIND: tl.constexpr, GATED: tl.constexpr, LANE: tl.constexpr,
    LANES: tl.constexpr,
) -> tl.tuple:  # fmt: skip
    """Both sums [C, L] of each row of x, with what these tiles add to them."""
    found: tl.tuple = ()
    more_found: tl.tuple = ()
    for row in tl.static_range(ROWS):
        part = _part(x + row * WIDTH, start, WIDTH, KIND, LANE, LANES)
        found = found + (sums[row] + _dot(tile, part, KIND, LANE),)
        more_found = more_found + (more_sums[row] + _dot(more_tile, part, KIND, LANE) if GATED else more_sums[row],)
    return found, more_found


@triton.jit
def _tile(
    numbers: tl.tensor, scales: tl.tensor, column_C: tl.tensor, out: tl.tensor, start: tl.tensor,
    LENGTH: tl.constexpr, GROUPS: tl.constexpr, KIND: tl.constexpr, LANE: tl.constexpr, LANES: tl.constexpr,
) -> tl.tensor:  # fmt: skip
    """Weights [C, N] of some rows, as float32. int4: those in the lower and in the upper halves of the bytes, with
    the step and the offset of each lane's group [C, L]."""
    # Said to the compiler: a thread's share of a row is its lane, of x (wider numbers) as well as of the weights.
    at_N = tl.max_contiguous(start + tl.arange(0, LANE * LANES), LANE)
    column_C1 = column_C[:, None]
    here = numbers + column_C1.to(tl.int64) * LENGTH + at_N[None, :]
    wholes = tl.load(here, (column_C1 < out) & (at_N < LENGTH)[None, :], 0, eviction_policy="evict_first")
    if KIND == _INT4:
        lane_L = start // LANE + tl.arange(0, LANES)
        inside = (column_C1 < out) & (lane_L * LANE < LENGTH)[None, :]
        pairs = tl.load(scales + column_C1.to(tl.int64) * GROUPS + (lane_L * LANE // _GROUP_BYTES)[None, :], inside, 0)
        step, offset = (pairs << 16).to(tl.float32, bitcast=True), (pairs & -65536).to(tl.float32, bitcast=True)
        return (wholes & 15).to(tl.float32), (wholes >> 4).to(tl.float32), step, offset
    else:
        return (wholes.to(tl.float32),)


@triton.jit
def _part(
    x: tl.tensor, start: tl.tensor, WIDTH: tl.constexpr, KIND: tl.constexpr, LANE: tl.constexpr, LANES: tl.constexpr
) -> tl.tensor:
    """What of a row of x meets a tile, [1, N]; for int4, that which meets the lower halves, and the upper ones."""
    at_1N = (start + tl.arange(0, LANE * LANES))[None, :]
    if KIND == _INT4:
        low_1N = at_1N // _GROUP_BYTES * (2 * _GROUP_BYTES) + at_1N % _GROUP_BYTES
        high_1N = low_1N + _GROUP_BYTES
        low = tl.load(x + low_1N, low_1N < WIDTH, 0).to(tl.float32)
        return low, tl.load(x + high_1N, high_1N < WIDTH, 0).to(tl.float32)
    else:
        return (tl.load(x + at_1N, at_1N < WIDTH, 0).to(tl.float32),)


@triton.jit
def _dot(tile: tl.tensor, part: tl.tensor, KIND: tl.constexpr, LANE: tl.constexpr) -> tl.tensor:
    """Products of a tile with a row of x, added up in each lane: [C, L]."""
    if KIND == _INT4:
        low, high, step, offset = tile
        return step * _lanes(low * part[0] + high * part[1], LANE) + offset * _lanes(part[0] + part[1], LANE)
    else:
        return _lanes(tile[0] * part[0], LANE)


@triton.jit
def _lanes(x_CN: tl.tensor, LANE: tl.constexpr) -> tl.tensor:
    # A lane is one thread's: adding it up at once takes no exchange, and leaves few registers to carry along.
    return tl.sum(tl.reshape(x_CN, (x_CN.shape[0], x_CN.shape[1] // LANE, LANE)), 2)


@triton.jit
def _total(sums_CL: tl.tensor, scales: tl.tensor, column_C: tl.tensor, out: tl.tensor, KIND: tl.constexpr) -> tl.tensor:
    total_C = tl.sum(sums_CL, 1)
    if KIND == _INT8:
        total_C *= tl.load(scales + column_C, column_C < out, 0)
    return total_C
