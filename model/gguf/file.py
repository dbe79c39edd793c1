"""Tensors of a GGUF file, decoded to plain numbers. The one door to the package gguf, which is optional.

The package knows how each kind of block stores its numbers (ggml has some thirty); where the blocks stand is
read by `gguf_container`. Decoded: F16 as float16 and BF16 as bfloat16, which is what they are, and F32 and all
quantised kinds as float32, which holds every number that their blocks give.
"""

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from model.checkpoint.files import AGAIN, FileHeader, FileStamp, TensorEntry, open_regular
from model.gguf.container import Container, StoredTensor, read_container
from parallel.errors import RefusedError
from parallel.slices import Slice

if TYPE_CHECKING:
    from torch import Tensor

Numbers = np.ndarray[Any, np.dtype[np.float32]]
Bytes = np.ndarray[Any, np.dtype[np.uint8]]

_DTYPES = {"F16": "float16", "BF16": "bfloat16"}
# Decoded at a time.
_CHUNK_NUMBERS = 2**20


@dataclass(frozen=True, slots=True)
class Block:
    """How a kind of tensor stores its numbers: `numbers` of a row in `nbytes` bytes. `name` as ggml's: Q4_K."""

    name: str
    numbers: int
    nbytes: int

    @property
    def dtype(self) -> str:
        return _DTYPES.get(self.name, "float32")


@dataclass(frozen=True, slots=True)
class GgufHeader:
    """One file: its metadata, its tensors as the rest of this package knows them, and the blocks they stand in."""

    metadata: dict[str, Any]
    file: FileHeader
    blocks: dict[str, Block]


def read_gguf(path: Path) -> GgufHeader:
    """Read and check a file's header: shapes, kinds, and that the tensors stand within the file, side by side.

    RefusedError names the file, the tensor, and what to do. No torch.
    """
    _package(path)
    container = read_container(path)
    blocks = {name: _block_of(path, tensor) for name, tensor in container.tensors.items()}
    entries = {name: _entry(container, tensor, blocks[name]) for name, tensor in container.tensors.items()}
    _check_places(container, entries.values())
    return GgufHeader(container.metadata, FileHeader(path, container.stamp, entries, kind="gguf"), blocks)


def _package(path: Path) -> Any:
    try:
        import gguf  # optional: only whoever has such files needs it
    except ImportError as error:
        raise RefusedError(
            f'{path}: reading GGUF needs the package gguf ({error}); install it with: pip install "shardrun[gguf]"'
        ) from None
    return gguf


def _block_of(path: Path, tensor: StoredTensor) -> Block:
    """How the tensor is stored. RefusedError where the package does not know, or the rows are not whole blocks."""
    gguf = _package(path)
    try:
        kind = gguf.GGMLQuantizationType(tensor.kind)
        numbers, nbytes = gguf.GGML_QUANT_SIZES[kind]
        known = _can_decode(tensor.kind)
    except (ValueError, KeyError):
        raise RefusedError(
            f"{path}: {tensor.name} is of kind {tensor.kind}, which the package gguf does not know; "
            f"update it (pip install -U gguf), or {AGAIN}"
        ) from None
    if not known:
        raise RefusedError(
            f"{path}: {tensor.name} is stored as {kind.name}, which the package gguf cannot decode; get the model in "
            "another kind, such as Q8_0"
        )
    if 0 in tensor.shape or prod(tensor.shape) >= 2**60:
        raise RefusedError(f"{path}: {tensor.name} has shape {list(tensor.shape)}, which no tensor has; {AGAIN}")
    if tensor.shape[-1] % numbers:
        raise RefusedError(
            f"{path}: {tensor.name} has rows of {tensor.shape[-1]} numbers, which are not whole blocks of {numbers} "
            f"({kind.name}); {AGAIN}"
        )
    return Block(kind.name, numbers, nbytes)


@lru_cache
def _can_decode(kind: int) -> bool:
    import gguf

    block = np.zeros((1, gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType(kind)][1]), np.uint8)
    try:
        gguf.dequantize(block, gguf.GGMLQuantizationType(kind))
    except NotImplementedError:
        return False
    return True


def _entry(container: Container, tensor: StoredTensor, block: Block) -> TensorEntry:
    nbytes = prod(tensor.shape) // block.numbers * block.nbytes
    start = container.data_start + tensor.offset
    if tensor.offset % container.alignment:
        raise RefusedError(
            f"{container.path}: {tensor.name} begins at byte {start}, not at a multiple of {container.alignment}; "
            f"{AGAIN}"
        )
    return TensorEntry(tensor.name, block.dtype, tensor.shape, tensor.name, start, nbytes, None, start)


def _check_places(container: Container, entries: Iterable[TensorEntry]) -> None:
    """The tensors follow one another, each at the next aligned byte, and the file holds them all."""
    place = container.data_start
    for entry in sorted(entries, key=lambda entry: (entry.start, entry.record_bytes)):
        aligned = -(-place // container.alignment) * container.alignment
        if entry.start != aligned:
            fault = "overlaps the tensor before it" if entry.start < aligned else "leaves a hole before it"
            raise RefusedError(f"{container.path}: {entry.name} at byte {entry.start} {fault} ({aligned}); {AGAIN}")
        place = entry.start + entry.record_bytes
    if place > container.stamp.size:
        raise RefusedError(
            f"{container.path}: is cut short: {container.stamp.size} bytes found, {place} expected; {AGAIN}"
        )


class GgufFile:
    """A GGUF file, open for reading."""

    def __init__(self, header: FileHeader, blocks: Mapping[str, Block] | None = None) -> None:
        """`blocks`: as `read_gguf` found them; read anew where they are not given."""
        self._header = header
        self._blocks = read_gguf(header.path).blocks if blocks is None else blocks

    def part(self, entry: TensorEntry, dim: int, own: Slice) -> "Tensor":
        """The slice `own` along `dim` of a tensor, in the entry's dtype: new memory, and little besides.

        RefusedError where it holds a number that is not finite, or the file was changed.
        """
        import torch  # only here: headers are read without it

        *outer, width = entry.shape
        on_width = dim == len(entry.shape) - 1
        assert len(outer) <= 1 and 0 <= dim <= len(outer)
        rows = own if outer and not on_width else Slice(0, prod(outer))
        columns = own if on_width else Slice(0, width)
        found = torch.empty((rows.size, columns.size), dtype=getattr(torch, entry.dtype))
        step = max(1, _CHUNK_NUMBERS // width)
        with open_regular(self._header.path) as file:
            self._header.check_unchanged(FileStamp.of(file))
            for start in range(rows.start, rows.stop, step):
                some = Slice(start, min(start + step, rows.stop))
                numbers = self._tensor(file, entry, some, columns).to(found.dtype)
                if not bool(torch.isfinite(numbers).all()):
                    raise _not_finite(self._header.path, entry.name, numbers, some.start, columns.start, bool(outer))
                found[some.start - rows.start : some.stop - rows.start] = numbers
        return found if outer else found[0]

    def numbers(self, name: str) -> Numbers:
        """All numbers of a small tensor of one dimension, [length]; finite or not. No torch."""
        entry = self._header.tensors[name]
        with open_regular(self._header.path) as file:
            self._header.check_unchanged(FileStamp.of(file))
            return self._decode(self._read(file, entry, Slice(0, 1), Slice(0, entry.shape[-1])), entry).reshape(-1)

    def _tensor(self, file: BinaryIO, entry: TensorEntry, rows: Slice, columns: Slice) -> "Tensor":
        """Numbers [rows, columns], in the dtype that the file has or that they are decoded to."""
        import torch

        block = self._blocks[entry.name]
        first = columns.start // block.numbers * block.numbers
        data = self._read(file, entry, rows, columns)
        if block.numbers == 1:  # plain numbers
            return torch.from_numpy(data).view(getattr(torch, block.dtype))
        return torch.from_numpy(self._decode(data, entry)).narrow(1, columns.start - first, columns.size)

    def _read(self, file: BinaryIO, entry: TensorEntry, rows: Slice, columns: Slice) -> Bytes:
        """Of each row the blocks that hold the columns, [rows, bytes]."""
        block = self._blocks[entry.name]
        first, last = columns.start // block.numbers, -(-columns.stop // block.numbers)
        row_bytes = entry.shape[-1] // block.numbers * block.nbytes
        data = np.empty((rows.size, row_bytes), np.uint8)
        if os.preadv(file.fileno(), [data.data], entry.start + rows.start * row_bytes) < data.nbytes:
            raise RefusedError(f"{self._header.path}: ends amid {entry.name}, though its header says more; {AGAIN}")
        return np.ascontiguousarray(data[:, first * block.nbytes : last * block.nbytes])

    def _decode(self, data: Bytes, entry: TensorEntry) -> Numbers:
        """The numbers of whole blocks, [rows, numbers]."""
        import gguf

        with np.errstate(all="ignore"):  # a scale that is not finite: told from the result
            return np.asarray(gguf.dequantize(data, gguf.GGMLQuantizationType[self._blocks[entry.name].name]))


def _not_finite(
    path: Path, name: str, numbers: "Tensor", first_row: int, first_column: int, has_rows: bool
) -> RefusedError:
    row, column = (~numbers.isfinite()).nonzero()[0].tolist()
    place = [first_row + row, first_column + column] if has_rows else [first_column + column]
    return RefusedError(
        f"{path}: {name} holds {numbers[row, column].item()} at {place}, which is no number; "
        "the weights are spoilt: get the file again"
    )
