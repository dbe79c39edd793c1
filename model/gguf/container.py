"""What a GGUF file says of itself: metadata by key, and a table of tensors. No torch, no further package.

The format (ggml, docs/gguf.md), little-endian: "GGUF", version, number of tensors, number of keys; keys with
typed values; name, shape, kind and offset of each tensor; then the data. The package gguf reads it too, but
believes every length: a file cut short gives it fewer numbers, and a wrong count keeps it busy without end.
Here every length is held against the bytes that are left before anything is read.
"""

import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from model.checkpoint.files import AGAIN, FileStamp, describe_start, open_regular
from parallel.errors import RefusedError

_MAGIC = b"GGUF"
# 1 counted in 32 bits, and is long gone.
_VERSIONS = (2, 3)
_NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_TEXT, _LIST = 8, 9
_LENGTH_BYTES = 8
# Far above a vocabulary with its merges, and above a chat template.
_MOST_ITEMS = 2**22
_MOST_TEXT_BYTES = 2**24
_MOST_NAME_BYTES = 256
_MOST_DIMENSIONS = 4
_ALIGNMENT = 32


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """A tensor of the table. `shape`: rows first, as in torch (the file says it the other way round).

    `kind`: ggml's number of how its numbers are stored. `offset`: bytes from the start of the data.
    """

    name: str
    shape: tuple[int, ...]
    kind: int
    offset: int


@dataclass(frozen=True, slots=True)
class Container:
    """Metadata and tensors of one file. A list of texts is a tuple of bytes, a list of numbers a tuple of them."""

    path: Path
    stamp: FileStamp
    metadata: dict[str, Any]
    tensors: dict[str, StoredTensor]
    data_start: int
    alignment: int


def read_container(path: Path) -> Container:
    """Read a file's metadata and table. RefusedError names the file and what of it cannot be read."""
    with open_regular(path) as file:
        stamp = FileStamp.of(file)
        start = file.read(64)
        if not start:
            raise RefusedError(f"{path}: is empty (0 bytes); {AGAIN}")
        if not start.startswith(_MAGIC):
            raise RefusedError(f"{path}: {_describe_other(start)}")
        file.seek(len(_MAGIC))
        cursor = _Cursor(path, file, stamp.size)
        version = cursor.number("I", "the version")
        if version not in _VERSIONS:
            raise RefusedError(f"{path}: is GGUF of {_describe_version(version)}; wanted version 2 or 3")
        n_tensors = cursor.number("Q", "the number of tensors")
        n_keys = cursor.number("Q", "the number of keys")
        metadata = cursor.metadata(n_keys)
        tensors = cursor.tensors(n_tensors)
    alignment = metadata.get("general.alignment", _ALIGNMENT)
    if type(alignment) is not int or alignment < 1 or alignment & (alignment - 1):
        raise RefusedError(f"{path}: general.alignment is {repr(alignment)[:40]}; wanted a power of two; {AGAIN}")
    return Container(path, stamp, metadata, tensors, -(-cursor.place // alignment) * alignment, alignment)


def _describe_other(start: bytes) -> str:
    if (known := describe_start(start)) is not None:
        return known
    if start[:4] in (b"lmgg", b"fmgg", b"tjgg", b"algg"):
        return "is a GGML file of the time before GGUF; get the model as GGUF, or its original files"
    return f"is not a GGUF file (starts with {start[:16]!r}); {AGAIN}"


def _describe_version(version: int) -> str:
    if int.from_bytes(version.to_bytes(4, "little"), "big") in _VERSIONS:
        return "a big-endian machine"
    return f"version {version}"


class _Cursor:
    """Reads on from a place in the file, never more than the file has."""

    def __init__(self, path: Path, file: BinaryIO, size: int) -> None:
        self.path, self.size = path, size
        self.place = file.tell()
        self._file = file

    def take(self, count: int, what: str) -> bytes:
        data = self._file.read(count) if count <= self.size - self.place else b""
        if len(data) < count:
            raise RefusedError(
                f"{self.path}: is cut short or damaged: {self.size} bytes found, but {what} at byte {self.place} takes "
                f"{count}; {AGAIN}"
            )
        self.place += count
        return data

    def number(self, letter: str, what: str) -> Any:
        return struct.unpack(f"<{letter}", self.take(struct.calcsize(f"<{letter}"), what))[0]

    def text(self, what: str) -> bytes:
        count = self.number("Q", what)
        if count > _MOST_TEXT_BYTES:
            raise self.damaged(f"{what} has {count} bytes, more than any has")
        return self.take(count, what)

    def name(self, what: str) -> str:
        text = self.text(what)
        name = text.decode("utf-8", errors="replace")
        if len(text) > _MOST_NAME_BYTES or not name.isprintable() or "\ufffd" in name:
            raise self.damaged(f"{what} is {text[:40]!r}, which is no name")
        return name

    def metadata(self, count: int) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for index in range(count):
            key = self.name(f"the name of key {index + 1} of {count}")
            if key in found:
                raise self.damaged(f"key {key!r} is given twice")
            found[key] = self._value(self.number("I", key), key)
        return found

    def _value(self, kind: int, what: str) -> Any:
        if kind == _LIST:
            return self._list(what)
        if kind == _TEXT:
            return self.text(what).decode("utf-8", errors="replace")
        if kind not in _NUMBERS:
            raise self.damaged(f"{what} is of kind {kind}, which GGUF does not have")
        return self.number(_NUMBERS[kind], what)

    def _list(self, what: str) -> tuple[Any, ...]:
        kind, count = self.number("I", what), self.number("Q", what)
        if count > _MOST_ITEMS:
            raise self.damaged(f"{what} has {count} items, more than any list has")
        if kind == _TEXT:
            if count * _LENGTH_BYTES > self.size - self.place:
                self.take(count * _LENGTH_BYTES, what)
            return tuple(self.text(what) for _ in range(count))
        if kind not in _NUMBERS:
            raise self.damaged(f"{what} is a list of kind {kind}, which is not supported")
        letters = f"<{count}{_NUMBERS[kind]}"
        return struct.unpack(letters, self.take(struct.calcsize(letters), what))

    def tensors(self, count: int) -> dict[str, StoredTensor]:
        found: dict[str, StoredTensor] = {}
        for index in range(count):
            name = self.name(f"the name of tensor {index + 1} of {count}")
            what = f"the description of {name}"
            if name in found:
                raise self.damaged(f"tensor {name!r} is given twice")
            dimensions = self.number("I", what)
            if not 1 <= dimensions <= _MOST_DIMENSIONS:
                raise self.damaged(f"{name} has {dimensions} dimensions; wanted 1 to {_MOST_DIMENSIONS}")
            shape = struct.unpack(f"<{dimensions}Q", self.take(dimensions * 8, what))
            found[name] = StoredTensor(name, shape[::-1], self.number("I", what), self.number("Q", what))
        return found

    def damaged(self, what: str) -> RefusedError:
        return RefusedError(f"{self.path}: is damaged before byte {self.place}: {what}; {AGAIN}")
