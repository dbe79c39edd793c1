"""One `.pth` file: what it is, and what its header says, read without executing anything and without torch.

torch.load checks no CRC, follows compressed records to any size and advises switching its safety off
when it fails; so a file is looked at here first, and what a user of a damaged one reads is written here.
"""

import struct
import zipfile
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

from model.checkpoint.files import (
    AGAIN,
    DTYPE_BYTES,
    FileHeader,
    FileStamp,
    TensorEntry,
    describe_start,
    open_regular,
    printable,
    reading,
)
from model.checkpoint.pickle_reader import OddTensor, PickledTensor, UnsafePickle, read_pickle
from parallel.errors import RefusedError

# Llama 3.1 405B needs 0.3 MB.
_MAX_PICKLE_BYTES = 4 * 2**20
_LOCAL_HEADER_BYTES = 30


def read_header(path: Path) -> FileHeader:
    """Read and check a shard's header. RefusedError names the file, the key, and what to do."""
    with open_regular(path) as file:
        stamp = FileStamp.of(file)
        with reading(path):
            start = file.read(64)
        if not start:
            raise RefusedError(f"{path}: is empty (0 bytes); {AGAIN}")
        if not start.startswith(b"PK\x03\x04"):
            raise RefusedError(f"{path}: {describe_start(start) or _describe_other(start)}")
        try:
            with zipfile.ZipFile(file) as archive:
                return _read_archive(path, stamp, file, archive)
        except zipfile.BadZipFile as error:
            raise RefusedError(f"{path}: {_describe_cut_short(file, stamp.size, str(error))}") from None
        except (struct.error, EOFError, OSError, NotImplementedError, UnicodeDecodeError, ValueError) as error:
            if isinstance(error, RefusedError):
                raise
            raise RefusedError(f"{path}: its zip directory is damaged ({error}); {AGAIN}") from None


def is_legacy(path: Path) -> bool:
    """True for a file of torch before 1.6: a bare pickle."""
    with open_regular(path) as file:
        return file.read(2) in (b"\x80\x02", b"\x80\x03", b"\x80\x04")


def _describe_other(start: bytes) -> str:
    if start[:2] in (b"\x80\x02", b"\x80\x03", b"\x80\x04"):
        return (
            "is a legacy PyTorch file (a bare pickle, from before torch 1.6), which has no checksums; "
            "--allow_legacy loads its tensors all the same"
        )
    if start[8:9] == b"{":
        return "looks like a safetensors file, not Meta's format; name it as it is, and give a Meta folder"
    return f"is not a PyTorch zip file (starts with {start[:16]!r}); {AGAIN}"


def _describe_cut_short(file: BinaryIO, size: int, reason: str) -> str:
    """A zip's directory is its end, so a cut file lacks it; its pickle is its beginning, and tells how
    large the file should have been."""
    try:
        file.seek(0)
        local = file.read(_LOCAL_HEADER_BYTES)
        name_bytes, extra_bytes = struct.unpack("<HH", local[26:30])
        file.seek(_LOCAL_HEADER_BYTES + name_bytes + extra_bytes)
        state, _ = _state_of(read_pickle(file.read(_MAX_PICKLE_BYTES)))
        storages = {tensor.storage for tensor in state.values() if isinstance(tensor, PickledTensor)}
        wanted = sum(storage.numel * DTYPE_BYTES.get(storage.dtype, 1) for storage in storages)
    except (UnsafePickle, struct.error, _NotTensors):
        wanted = 0
    if wanted > size:
        return f"is cut short: {size} bytes found, at least {wanted} expected; {AGAIN}"
    return f"is damaged or cut short ({size} bytes; {reason}); {AGAIN}"


def _read_archive(path: Path, stamp: FileStamp, file: BinaryIO, archive: zipfile.ZipFile) -> FileHeader:
    records: dict[str, zipfile.ZipInfo] = {}
    for info in archive.infolist():
        name = info.filename.partition("/")[2]
        if info.compress_type != zipfile.ZIP_STORED or info.compress_size != info.file_size:
            raise RefusedError(
                f"{path}: record {printable(info.filename)} is compressed; torch stores weights uncompressed, so "
                "this file was not written by it"
            )
        if info.flag_bits & 0x1:
            raise RefusedError(f"{path}: record {printable(info.filename)} is encrypted")
        if name in records:
            raise RefusedError(f"{path}: holds the record {printable(info.filename)} twice")
        records[name] = info
    if min((info.header_offset for info in records.values()), default=0) != 0:
        # Readers disagree on where an archive begins behind other bytes: they would see different weights.
        raise RefusedError(f"{path}: has other bytes in front of its zip records; {AGAIN}")
    if sum(info.file_size for info in records.values()) > stamp.size:
        raise RefusedError(f"{path}: its records overlap (they add up to more than its {stamp.size} bytes)")
    if "data.pkl" not in records:
        raise RefusedError(f"{path}: is a zip file but not PyTorch's (no data.pkl in it)")
    if records["data.pkl"].file_size > _MAX_PICKLE_BYTES:
        raise RefusedError(
            f"{path}: its data.pkl has {records['data.pkl'].file_size} bytes, too many for a table of tensors"
        )
    if (
        "byteorder" in records
        and records["byteorder"].file_size <= 16
        and archive.read(records["byteorder"]) != b"little"
    ):
        raise RefusedError(f"{path}: was written with big-endian numbers; save it again on a little-endian machine")
    try:
        state, nested = _state_of(read_pickle(archive.read(records["data.pkl"])))
    except UnsafePickle as error:
        raise RefusedError(
            f"{path}: refused: {error}; nothing of it was executed. Get the weights from a source that you trust"
        ) from None
    except _NotTensors as error:
        raise RefusedError(f"{path}: {error}") from None
    starts = {name: _data_start(file, info, stamp.size, path) for name, info in records.items()}
    tensors = {key: _entry(path, key, value, records, starts) for key, value in state.items()}
    return FileHeader(path, stamp, tensors, nested=nested)


def _data_start(file: BinaryIO, info: zipfile.ZipInfo, size: int, path: Path) -> int:
    """Where a record's bytes begin: behind its local header, whose lengths may differ from the directory's."""
    file.seek(info.header_offset)
    local = file.read(_LOCAL_HEADER_BYTES)
    name_bytes, extra_bytes = struct.unpack("<HH", local[26:30]) if len(local) == _LOCAL_HEADER_BYTES else (0, 0)
    named = file.read(name_bytes).decode("utf-8", "replace")
    if not local.startswith(b"PK\x03\x04") or named != info.filename:
        raise RefusedError(f"{path}: record {printable(info.filename)} is not where the file's directory says; {AGAIN}")
    start = info.header_offset + _LOCAL_HEADER_BYTES + int(name_bytes) + int(extra_bytes)
    if start + info.file_size > size:
        raise RefusedError(f"{path}: record {printable(info.filename)} goes beyond the end of the file; {AGAIN}")
    return start


class _NotTensors(Exception):
    """The pickle is harmless, but no dictionary of tensors."""


def _state_of(value: Any) -> tuple[dict[str, Any], bool]:
    """The table of tensors, and whether it was nested under 'model'."""
    if not isinstance(value, dict):
        found = "a single tensor" if isinstance(value, PickledTensor) else f"a {type(value).__name__}"
        raise _NotTensors(f"holds {found}; a shard holds a dictionary of names and tensors")
    inner = value.get("model")
    nested = isinstance(inner, dict) and not any(isinstance(item, PickledTensor) for item in value.values())
    state = inner if nested and isinstance(inner, dict) else value
    for key in state:
        if not isinstance(key, str) or printable(key) != key:
            raise _NotTensors(f"has a key {ascii(key)[:80]} that is not a name; a shard holds names and tensors")
    return state, nested


def _entry(
    path: Path, key: str, value: Any, records: dict[str, zipfile.ZipInfo], starts: dict[str, int]
) -> TensorEntry:
    if isinstance(value, OddTensor):
        raise RefusedError(f"{path}: {key} is {value.kind}; wanted a plain tensor")
    if not isinstance(value, PickledTensor):
        raise RefusedError(f"{path}: {key} is a {type(value).__name__}, not a tensor")
    storage, record = value.storage, f"data/{value.storage.key}"
    if storage.dtype not in DTYPE_BYTES:
        raise RefusedError(f"{path}: {key} has dtype {storage.dtype}; wanted {', '.join(DTYPE_BYTES)}")
    if record not in records:
        raise RefusedError(f"{path}: {key} points to the record {record}, which is not in the file; {AGAIN}")
    info, itemsize = records[record], DTYPE_BYTES[storage.dtype]
    if info.file_size != storage.numel * itemsize:
        raise RefusedError(
            f"{path}: {key}: record {record} has {info.file_size} bytes, its table says "
            f"{storage.numel * itemsize}; {AGAIN}"
        )
    if not _contiguous(value.shape, value.stride):
        raise RefusedError(
            f"{path}: {key} has shape {list(value.shape)} with strides {list(value.stride)}; wanted a contiguous tensor"
        )
    if value.offset + prod(value.shape) > storage.numel:
        raise RefusedError(f"{path}: {key} reaches beyond its record {record}; {AGAIN}")
    start = starts[record]
    return TensorEntry(
        key, storage.dtype, value.shape, record, start, info.file_size, info.CRC, start + value.offset * itemsize
    )


def _contiguous(shape: tuple[int, ...], stride: tuple[int, ...]) -> bool:
    expected = 1
    for size, step in zip(reversed(shape), reversed(stride), strict=True):
        if size != 1 and step != expected:
            return False
        expected *= size
    return True
