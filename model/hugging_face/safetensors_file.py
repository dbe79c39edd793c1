"""Safetensors files: the header read and checked without torch, and a file written one tensor at a time.

The format (github.com/huggingface/safetensors): the length of a JSON header in eight bytes, little-endian;
the header, {"name": {"dtype", "shape", "data_offsets": [begin, end]}, ..., "__metadata__": texts by name};
then the tensors' bytes, without holes, offsets counted from the first of them. There is no checksum.
"""

import json
import os
from collections.abc import Callable, Iterable, Mapping
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from model.checkpoint.files import AGAIN, DTYPE_BYTES, FileHeader, FileStamp, TensorEntry, describe_start, open_regular
from model.checkpoint.strict_json import parse_json, shown
from parallel.errors import RefusedError

if TYPE_CHECKING:
    from model.checkpoint.shard_writer import PlannedTensor

_DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
_LENGTH_BYTES = 8
# The format's own limit.
_MAX_HEADER_BYTES = 100_000_000
_MAX_DIMENSIONS = 8
_METADATA = "__metadata__"
_ALIGNMENT = 64
_CHUNK_BYTES = 2**24


def read_safetensors_header(path: Path) -> FileHeader:
    """Read and check a file's header. RefusedError names the file, the key, and what to do."""
    with open_regular(path) as file:
        stamp = FileStamp.of(file)
        start = file.read(64)
        length = int.from_bytes(start[:_LENGTH_BYTES], "little")
        if not start:
            raise RefusedError(f"{path}: is empty (0 bytes); {AGAIN}")
        if (
            len(start) <= _LENGTH_BYTES
            or length > _MAX_HEADER_BYTES
            or start[_LENGTH_BYTES : _LENGTH_BYTES + 1] != b"{"
        ):
            raise RefusedError(f"{path}: {_describe_other(start)}")
        file.seek(_LENGTH_BYTES)
        header = file.read(length)
    if len(header) < length:
        raise RefusedError(
            f"{path}: is cut short: {stamp.size} bytes found, its header alone has {_LENGTH_BYTES + length}; {AGAIN}"
        )
    try:
        found = parse_json(f"{path}: its header", header.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise RefusedError(f"{path}: its header is not UTF-8 text (byte {error.start}); {AGAIN}") from None
    if not isinstance(found, dict):
        raise RefusedError(f"{path}: its header is no table of tensors; {AGAIN}")
    _check_metadata(path, found.pop(_METADATA, {}))
    tensors = {name: _entry(path, name, value, _LENGTH_BYTES + length) for name, value in found.items()}
    _check_places(path, tensors.values(), _LENGTH_BYTES + length, stamp.size)
    return FileHeader(path, stamp, tensors, kind="safetensors")


def _describe_other(start: bytes) -> str:
    if (known := describe_start(start)) is not None:
        return known
    if start.startswith(b"PK\x03\x04"):
        return "is a PyTorch zip file, not safetensors; name it .bin or .pth, as what it is"
    return f"is not a safetensors file (starts with {start[:16]!r}); {AGAIN}"


def _check_metadata(path: Path, found: object) -> None:
    if not isinstance(found, dict) or not all(isinstance(value, str) for value in found.values()):
        raise RefusedError(f"{path}: its {_METADATA} are not texts by name; {AGAIN}")


def _entry(path: Path, name: str, value: Any, data_start: int) -> TensorEntry:
    if not isinstance(value, dict) or set(value) != {"dtype", "shape", "data_offsets"}:
        raise RefusedError(f"{path}: {name} is described by {shown(value)}; wanted dtype, shape and data_offsets")
    dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(dtype, str) or dtype not in _DTYPES:
        raise RefusedError(f"{path}: {name} has dtype {shown(dtype)}; wanted {', '.join(_DTYPES)}")
    if not _is_counts(shape) or not _is_counts(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise RefusedError(f"{path}: {name} has shape {shown(shape)} at {shown(offsets)}, which no tensor has; {AGAIN}")
    begin, end = offsets
    nbytes = prod(shape) * DTYPE_BYTES[_DTYPES[dtype]]
    if end - begin != nbytes:
        raise RefusedError(
            f"{path}: {name} has shape {shown(shape)} in {dtype}, {shown(nbytes)} bytes, but its offsets span "
            f"{end - begin}; {AGAIN}"
        )
    start = data_start + begin
    return TensorEntry(name, _DTYPES[dtype], tuple(shape), name, start, nbytes, None, start)


def _is_counts(value: object) -> bool:
    """True for a short list of whole numbers that 64 bits hold."""
    if not isinstance(value, list) or len(value) > _MAX_DIMENSIONS:
        return False
    return all(type(count) is int and 0 <= count < 2**63 for count in value)


def _check_places(path: Path, tensors: Iterable[TensorEntry], data_start: int, size: int) -> None:
    """The tensors fill the file from the header to the end, without a hole, none over another."""
    place = data_start
    for entry in sorted(tensors, key=lambda entry: (entry.start, entry.nbytes)):
        if entry.start != place:
            fault = "overlaps the tensor before it" if entry.start < place else "leaves a hole before it"
            raise RefusedError(f"{path}: {entry.name} at byte {entry.start} {fault} (that ends at {place}); {AGAIN}")
        place += entry.nbytes
    if place > size:
        raise RefusedError(f"{path}: is cut short: {size} bytes found, {place} expected; {AGAIN}")
    if place < size:
        raise RefusedError(f"{path}: has {size} bytes, {size - place} more than its header tells of; {AGAIN}")


def write_safetensors(
    path: Path,
    tensors: Iterable["PlannedTensor"],
    metadata: Mapping[str, str],
    wrote: Callable[[int], None] = lambda _: None,
) -> None:
    """Write `tensors` to `path` under a temporary name, flush it to the disk, then rename.

    Memory holds one tensor. `wrote` is called with each tensor's bytes. A kill leaves the old file, or none.
    Larger numbers stand first and the data begins at a multiple of 64, so that every number is aligned.
    """
    ordered = sorted(tensors, key=lambda tensor: -tensor.dtype.itemsize)
    partial = path.with_name(f".{path.name}.partial")
    try:
        with partial.open("wb") as file:
            file.write(_header(ordered, metadata))
            for tensor in ordered:
                content = tensor.content()
                for start in range(0, len(content), _CHUNK_BYTES):
                    file.write(content[start : start + _CHUNK_BYTES])
                wrote(tensor.nbytes)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def _header(tensors: Iterable["PlannedTensor"], metadata: Mapping[str, str]) -> bytes:
    names = {dtype: name for name, dtype in _DTYPES.items()}
    table: dict[str, object] = {_METADATA: dict(metadata)} if metadata else {}
    place = 0
    for tensor in tensors:
        dtype = names[str(tensor.dtype).removeprefix("torch.")]
        assert tensor.name not in table, f"{tensor.name} is given twice"
        table[tensor.name] = {
            "dtype": dtype,
            "shape": list(tensor.shape),
            "data_offsets": [place, place + tensor.nbytes],
        }
        place += tensor.nbytes
    text = json.dumps(table, separators=(",", ":")).encode()
    text += b" " * (-(_LENGTH_BYTES + len(text)) % _ALIGNMENT)
    return len(text).to_bytes(_LENGTH_BYTES, "little") + text
