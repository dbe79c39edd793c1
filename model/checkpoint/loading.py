"""Reading a shard's weights: mapped, checked record by record, copied one at a time to their place."""

import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from model.checkpoint.files import AGAIN, FileStamp, ShardHeader, TensorEntry, open_regular
from model.checkpoint.legacy import load_legacy
from parallel.errors import RefusedError

# Called with bytes read so far and bytes in all.
Progress = Callable[[int, int], None]
_CRC_CHUNK_BYTES = 2**24
_SUM_NUMBERS = 2**22


class ShardReader:
    """The tensors of an open shard: views of the mapped file, each checked against its CRC-32 when read."""

    def __init__(self, header: ShardHeader) -> None:
        self.header = header
        self._checked: set[str] = set()
        self._checked_records: set[str] = set()
        self._tensors = load_legacy(header.path) if header.legacy else _map_tensors(header)

    def read(self, name: str) -> Tensor:
        """The tensor `name` as it stands in the file, not to be written to.

        RefusedError where it is not what the header says, its record's CRC-32 is not the one in the file, or
        a number is not finite.
        """
        if name not in self._checked:
            self._check(self.header.tensors[name], self._tensors.get(name))
            self._checked.add(name)
        return self._tensors[name]

    def _check(self, entry: TensorEntry, tensor: Tensor | None) -> None:
        """Look at what torch gave, not at what another reader of zip files would have."""
        found = tensor is not None and (tuple(tensor.shape), str(tensor.dtype), tensor.is_contiguous())
        if tensor is None or found != (entry.shape, f"torch.{entry.dtype}", True):
            raise RefusedError(f"{self.header.path}: {entry.name} is not what the file's directory says; {AGAIN}")
        if not self.header.legacy and entry.record not in self._checked_records:
            self._check_record(entry, tensor)
            self._checked_records.add(entry.record)
        # A sum is finite only if all its numbers are (or it overflowed): one pass, and a search if it is not.
        # In parts, since summing in float32 copies what it sums on a CPU.
        parts = torch.split(tensor.view(-1), _SUM_NUMBERS)
        if not all(bool(torch.isfinite(part.sum(dtype=torch.float32))) for part in parts):
            _refuse_non_finite(self.header, entry.name, tensor)

    def _check_record(self, entry: TensorEntry, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        content = memoryview(torch.empty(0, dtype=torch.uint8).set_(storage).numpy())  # type: ignore[arg-type]
        if len(content) != entry.record_bytes:
            raise RefusedError(f"{self.header.path}: {entry.name} is not what the file's directory says; {AGAIN}")
        crc32 = 0
        for start in range(0, entry.record_bytes, _CRC_CHUNK_BYTES):
            crc32 = zlib.crc32(content[start : start + _CRC_CHUNK_BYTES], crc32)
        if crc32 != entry.crc32:
            raise RefusedError(
                f"{self.header.path}: {entry.name} is damaged: record {entry.record} has CRC-32 "
                f"{crc32:08x}, the file says {entry.crc32:08x}; get the file again"
            )


@contextmanager
def open_shard(header: ShardHeader) -> Iterator[ShardReader]:
    """Map a shard whose header was read before. RefusedError where the file was changed since or meanwhile."""
    with open_regular(header.path) as file:
        _check_unchanged(header, FileStamp.of(file))
        yield ShardReader(header)
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
    try:
        state = torch.load(header.path, map_location="cpu", mmap=True, weights_only=True)
    except Exception as error:  # torch raises many kinds here, with advice that we do not pass on
        raise RefusedError(
            f"{header.path}: torch's weights-only reader refuses it ({type(error).__name__}); nothing of it was "
            "executed. Save it again with torch.save, or get the weights from a source that you trust"
        ) from None
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
