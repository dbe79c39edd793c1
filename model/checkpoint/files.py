"""What every kind of weight file has in common: tensors at offsets, a stamp, and how a file is opened.

No torch here: a folder is looked at before torch is loaded.
"""

import os
import stat
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import BinaryIO

from parallel.errors import RefusedError

DTYPE_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}
AGAIN = "download it again"


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """Where a tensor stands in its file: bytes [start, start + nbytes), inside a record with a CRC-32."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    record: str
    record_start: int
    record_bytes: int
    crc32: int
    start: int

    @property
    def nbytes(self) -> int:
        return prod(self.shape) * DTYPE_BYTES[self.dtype]


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


@dataclass(frozen=True, slots=True)
class ShardHeader:
    """The tensors of one shard, by name, as its header describes them."""

    path: Path
    stamp: FileStamp
    tensors: dict[str, TensorEntry]
    nested: bool
    legacy: bool = False


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


def describe_start(start: bytes) -> str | None:
    """What a file that is neither zip nor pickle is, by its first bytes."""
    text = start.lstrip().lower()
    if text.startswith(b"version https://git-lfs"):
        return "is a Git LFS pointer, not the weights; run `git lfs pull` in its repository"
    if text.startswith((b"<!doctype", b"<html", b"<head", b"<?xml", b"<")):
        return f"is not a PyTorch file but a web page (starts with {start[:16]!r}); {AGAIN}"
    return None
