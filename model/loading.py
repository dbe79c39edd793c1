"""Reading a shard's weights: mapped, checked record by record, copied one at a time to their place."""

import mmap
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from model.legacy import load_legacy
from model.shard_file import FileStamp, ShardHeader, TensorEntry, open_regular
from parallel.errors import RefusedError

# Called with bytes read so far and bytes in all.
Progress = Callable[[int, int], None]
_CRC_CHUNK_BYTES = 2**24


class ShardReader:
    """The tensors of an open shard: views of the mapped file, each checked against its CRC-32 when read."""

    def __init__(self, header: ShardHeader, mapped: mmap.mmap | None) -> None:
        self.header = header
        self._mapped = mapped
        self._checked: set[str] = set()
        self._tensors = load_legacy(header.path) if header.legacy else _map_tensors(header)

    def read(self, name: str) -> Tensor:
        """The tensor `name` as it stands in the file, not to be written to.

        RefusedError where its record's CRC-32 is not the one in the file, or a number is not finite.
        """
        entry = self.header.tensors[name]
        if self._mapped is not None and entry.record not in self._checked:
            self._check_record(entry)
            self._checked.add(entry.record)
        tensor = self._tensors[name]
        # A sum is finite only if all its numbers are (or it overflowed): one pass, and a search if it is not.
        if not bool(torch.isfinite(tensor.sum(dtype=torch.float32))):
            _refuse_non_finite(self.header, name, tensor)
        return tensor

    def _check_record(self, entry: TensorEntry) -> None:
        assert self._mapped is not None
        crc32, end = 0, entry.record_start + entry.record_bytes
        with memoryview(self._mapped) as view:
            for start in range(entry.record_start, end, _CRC_CHUNK_BYTES):
                crc32 = zlib.crc32(view[start : min(start + _CRC_CHUNK_BYTES, end)], crc32)
        if crc32 != entry.crc32:
            raise RefusedError(
                f"{self.header.path}: {entry.name} is damaged: record {entry.record} has CRC-32 "
                f"{crc32:08x}, the file says "
                f"{entry.crc32:08x}; get the file again"
            )


@contextmanager
def open_shard(header: ShardHeader) -> Iterator[ShardReader]:
    """Map a shard whose header was read before. RefusedError where the file was changed since or meanwhile."""
    with open_regular(header.path) as file:
        _check_unchanged(header, FileStamp.of(file))
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
            yield ShardReader(header, None if header.legacy else mapped)
        _check_unchanged(header, FileStamp.of(file))
    with open_regular(header.path) as file:
        _check_unchanged(header, FileStamp.of(file))


def _check_unchanged(header: ShardHeader, stamp: FileStamp) -> None:
    if stamp != header.stamp:
        raise RefusedError(
            f"{header.path}: was changed while it was being read (size {header.stamp.size}, now {stamp.size}); "
            "wait until it is whole, then start again"
        )


def _map_tensors(header: ShardHeader) -> dict[str, Tensor]:
    state = torch.load(header.path, map_location="cpu", mmap=True, weights_only=True)
    tensors: dict[str, Tensor] = state["model"] if header.nested else state
    return tensors


def _refuse_non_finite(header: ShardHeader, name: str, tensor: Tensor) -> None:
    bad = torch.nonzero(~torch.isfinite(tensor))
    if len(bad):
        first = bad[0].tolist()
        value = tensor[tuple(first)].item()
        raise RefusedError(
            f"{header.path}: {name} holds {len(bad)} "
            f"number{'s that are' if len(bad) > 1 else ' that is'} not finite, the "
            f"first {value} at {first}; the weights are spoilt: get the file again"
        )


def load_weights(
    header: ShardHeader,
    dtype: torch.dtype,
    device: torch.device,
    wanted: list[str],
    progress: Progress | None = None,
) -> dict[str, Tensor]:
    """Every weight of `wanted`, in `dtype` on `device`, in memory of its own.

    Holds one tensor besides the result at any time; the file's pages are shared with other processes and
    can be dropped by the system.
    """
    total = sum(header.tensors[name].nbytes for name in wanted)
    done, weights = 0, {}
    with open_shard(header) as reader:
        for name in wanted:
            weights[name] = reader.read(name).to(device=device, dtype=dtype, copy=True)
            done += header.tensors[name].nbytes
            if progress is not None:
                progress(done, total)
    return weights
