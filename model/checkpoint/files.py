"""What every kind of weight file has in common: tensors at offsets, a stamp, and how a file is opened.

No torch here: a folder is looked at before torch is loaded.
"""

import os
import stat
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import BinaryIO, Literal

from parallel.errors import RefusedError

DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
AGAIN = "download it again"


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """Where a tensor stands in its file: bytes [start, start + nbytes), inside a record.

    A record is what has a checksum of its own (`crc32`, None where the format has none); in formats without
    records it is the tensor itself.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    record: str
    record_start: int
    record_bytes: int
    crc32: int | None
    start: int

    @property
    def nbytes(self) -> int:
        return prod(self.shape) * DTYPE_BYTES[self.dtype]

    @property
    def own_crc32(self) -> int | None:
        """The checksum of the tensor alone; None where its record holds more, or has none."""
        return self.crc32 if self.nbytes == self.record_bytes else None


@dataclass(frozen=True, slots=True)
class FileStamp:
    """What tells whether a file was changed meanwhile."""

    inode: int
    size: int
    mtime_ns: int

    @classmethod
    def of(cls, file: BinaryIO) -> "FileStamp":
        status = os.fstat(file.fileno())
        return cls(status.st_ino, status.st_size, status.st_mtime_ns)


FileKind = Literal["torch", "legacy", "safetensors", "gguf"]


@dataclass(frozen=True, slots=True)
class FileHeader:
    """The tensors of one file, by name, as its header describes them."""

    path: Path
    stamp: FileStamp
    tensors: dict[str, TensorEntry]
    kind: FileKind = "torch"
    # A .pth file whose table stands under the key "model".
    nested: bool = False

    @property
    def checksums(self) -> dict[str, int | None]:
        """The CRC-32 of each tensor's record."""
        return {name: entry.crc32 for name, entry in self.tensors.items()}

    def check_unchanged(self, stamp: FileStamp) -> None:
        """RefusedError where the file is not what it was when its header was read."""
        if stamp != self.stamp:
            raise RefusedError(
                f"{self.path}: was changed while it was being read (size {self.stamp.size}, now {stamp.size}); "
                "wait until it is whole, then start again"
            )


def open_regular(path: Path) -> BinaryIO:
    """Open a regular file for reading, or say why not. A FIFO is refused, not waited for."""
    try:
        mode = os.stat(path).st_mode
        if stat.S_ISDIR(mode):
            raise RefusedError(f"{path}: is a folder; wanted a file")
        if not stat.S_ISREG(mode):
            raise RefusedError(f"{path}: is not a regular file (a pipe, socket or device); wanted a plain file")
        return path.open("rb")
    except FileNotFoundError:
        if path.is_symlink():
            raise RefusedError(f"{path}: is a link to {os.readlink(path)}, which does not exist; {AGAIN}") from None
        raise RefusedError(f"{path}: does not exist") from None
    except OSError as error:
        raise RefusedError(f"{path}: cannot be read: {error.strerror} ({error.__class__.__name__})") from None


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn a failing disk (or network, or odd file) into a refusal that names the file."""
    try:
        yield
    except OSError as error:
        raise RefusedError(f"{path}: cannot be read: {error.strerror}; {AGAIN}") from None


def describe_start(start: bytes) -> str | None:
    """What a file that is neither zip nor pickle is, by its first bytes."""
    text = start.lstrip().lower()
    if text.startswith(b"version https://git-lfs"):
        return "is a Git LFS pointer, not the file itself; run `git lfs pull` in its repository"
    if text.startswith((b"<!doctype", b"<html", b"<head", b"<?xml", b"<")):
        return f"is a web page (starts with {start[:16]!r}); {AGAIN}"
    return None


def printable(text: str) -> str:
    """A name out of a file as it can be printed: a damaged one may hold anything."""
    return text if text.isascii() and text.isprintable() and len(text) <= 120 else ascii(text[:120])


def main_dtype(folder: Path, headers: Sequence[FileHeader], notes: list[str]) -> str:
    """The dtype of most numbers; a mixture is noted."""
    numbers: Counter[str] = Counter()
    for header in headers:
        for entry in header.tensors.values():
            numbers[entry.dtype] += entry.nbytes // DTYPE_BYTES[entry.dtype]
    dtype = numbers.most_common(1)[0][0]
    if len(numbers) > 1:
        notes.append(f"{folder}: holds {' and '.join(sorted(numbers))}; dtype auto takes {dtype}")
    return dtype
