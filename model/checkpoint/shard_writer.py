"""Writing a shard that torch.load reads, one tensor at a time: memory stays at one tensor.

torch.save wants the whole dictionary in memory. Its file is a zip of uncompressed records (data.pkl, and
data/N for each tensor's bytes), so the pickle is made here from shapes alone and the records are streamed
behind it. Files are the same to the bit for the same tensors.
"""

import io
import os
import pickle
import zipfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

_ALIGNMENT = 64
_ARCHIVE = "archive"
_CHUNK_BYTES = 2**24
_ZIP64_LIMIT = 2**31 - 1
_EPOCH = (1980, 1, 1, 0, 0, 0)


@dataclass(frozen=True, slots=True)
class PlannedTensor:
    """A tensor to be written, its numbers made when its turn comes."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    make: Callable[[], Tensor]

    @property
    def nbytes(self) -> int:
        return int(torch.Size(self.shape).numel()) * self.dtype.itemsize

    def content(self) -> memoryview:
        """The tensor's bytes, made now."""
        made = self.make().detach().to("cpu").contiguous()
        assert tuple(made.shape) == self.shape and made.dtype == self.dtype, f"{self.name} is not as planned"
        return memoryview(made.flatten().view(torch.uint8).numpy())  # type: ignore[arg-type]


def planned(weights: dict[str, Tensor]) -> list[PlannedTensor]:
    """A plan for tensors that are in memory already."""
    return [
        PlannedTensor(name, tuple(tensor.shape), tensor.dtype, lambda tensor=tensor: tensor)  # type: ignore[misc]
        for name, tensor in weights.items()
    ]


class _Stored:
    """Stands for a tensor in the pickle."""

    def __init__(self, index: int, tensor: PlannedTensor) -> None:
        self.key = str(index)
        self.tensor = tensor


class _StorageOf:
    def __init__(self, stored: _Stored) -> None:
        self.stored = stored


class _Pickler(pickle.Pickler):
    def persistent_id(self, obj: Any) -> Any:
        if not isinstance(obj, _StorageOf):
            return None
        tensor = obj.stored.tensor
        storage_type = torch.storage._dtype_to_storage_type_map()[tensor.dtype]
        numel = int(torch.Size(tensor.shape).numel())
        return ("storage", getattr(torch, storage_type), obj.stored.key, "cpu", numel)

    def reducer_override(self, obj: Any) -> Any:
        if not isinstance(obj, _Stored):
            return NotImplemented
        shape = obj.tensor.shape
        stride = torch.empty(shape, device="meta").stride()
        # The arguments of torch._utils._rebuild_tensor_v2; the empty dictionary is its backward hooks.
        return torch._utils._rebuild_tensor_v2, (_StorageOf(obj), 0, tuple(shape), tuple(stride), False, {})


def _pickle_of(tensors: list[PlannedTensor]) -> bytes:
    buffer = io.BytesIO()
    _Pickler(buffer, protocol=2).dump({tensor.name: _Stored(i, tensor) for i, tensor in enumerate(tensors)})
    return buffer.getvalue()


def write_shard(path: Path, tensors: Iterable[PlannedTensor], wrote: Callable[[int], None] = lambda _: None) -> None:
    """Write `tensors` to `path` under a temporary name, flush it to the disk, then rename.

    `wrote` is called with each tensor's bytes. A kill leaves the old file, or none.
    """
    tensors = list(tensors)
    partial = path.with_name(f".{path.name}.partial")
    try:
        with partial.open("wb") as file:
            with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
                _add(archive, "data.pkl", memoryview(_pickle_of(tensors)))
                _add(archive, "byteorder", memoryview(b"little"))
                _add(archive, "version", memoryview(b"3\n"))
                for index, tensor in enumerate(tensors):
                    _add(archive, f"data/{index}", tensor.content())
                    wrote(tensor.nbytes)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def _add(archive: zipfile.ZipFile, name: str, content: memoryview) -> None:
    """Append a record whose bytes begin at a multiple of 64, as torch's do, so that they can be mapped."""
    info = zipfile.ZipInfo(f"{_ARCHIVE}/{name}", _EPOCH)
    info.file_size = len(content)
    large = len(content) > _ZIP64_LIMIT
    header_bytes = 30 + len(info.filename.encode()) + (20 if large else 0)
    start = cast(io.BufferedIOBase, archive.fp).tell() + header_bytes + 4
    padding = -start % _ALIGNMENT
    # An extra field that readers pass over: an id, its length, and zeros.
    info.extra = b"FB" + padding.to_bytes(2, "little") + bytes(padding)
    with archive.open(info, "w", force_zip64=large) as record:
        for start in range(0, len(content), _CHUNK_BYTES):
            record.write(content[start : start + _CHUNK_BYTES])
