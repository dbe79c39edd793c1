"""Weights as tensors: files are mapped, not read into memory, and a part of a weight is a view where it can be."""

import contextlib
import mmap
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from model.checkpoint.checking import Check, check_record, checks_of
from model.checkpoint.checkpoint import Checkpoint, Piece
from model.checkpoint.files import FileHeader, FileStamp, TensorEntry, open_regular
from model.checkpoint.legacy import load_legacy
from model.cuts import Weight
from parallel.errors import RankFailedError, RefusedError
from parallel.slices import Slice

# Linux 5.14: fault pages in without waiting for their first use. Python 3.11 has no name for it.
_MADV_POPULATE_READ = 22
_PART_BYTES = 2**22
# Python 3.13 names it.
_MAP_NORESERVE = getattr(mmap, "MAP_NORESERVE", 0x4000 if sys.platform == "linux" else 0)


class OpenFile(Protocol):
    """A weight file, open for reading."""

    def part(self, entry: TensorEntry, dim: int, own: Slice) -> Tensor:
        """The slice `own` along `dim` of a tensor, not to be written to."""


class MappedFile:
    """A .pth or safetensors file. Tensors are views of its pages, which processes share."""

    def __init__(self, header: FileHeader) -> None:
        with open_regular(header.path) as file:
            header.check_unchanged(FileStamp.of(file))
            # Private and writable: a write (there should be none) would stay in this process. Without a reserve
            # of memory for such writes: a file may be larger than the memory there is.
            how = {"flags": mmap.MAP_PRIVATE | _MAP_NORESERVE, "prot": mmap.PROT_READ | mmap.PROT_WRITE}
            try:
                self._map = mmap.mmap(file.fileno(), 0, **how)
            except OSError as error:
                raise RefusedError(
                    f"{header.path}: cannot be mapped: {error.strerror} (a limit on a process's addresses, as "
                    "`ulimit -v`, or vm.overcommit_memory=2?); lift it, or use more ranks on files cut for them"
                ) from None

    def part(self, entry: TensorEntry, dim: int, own: Slice) -> Tensor:
        count = torch.Size(entry.shape).numel()
        whole = torch.frombuffer(self._map, dtype=getattr(torch, entry.dtype), count=count, offset=entry.start)
        return whole.view(entry.shape).narrow(dim, own.start, own.size)

    def bring_in(self, start: int, nbytes: int) -> None:
        """Have the pages of these bytes in memory and in this process's table, if the system can."""
        first = start // mmap.PAGESIZE * mmap.PAGESIZE
        with contextlib.suppress(OSError):  # an older kernel: they come when they are used
            # In parts: Python lets no other thread run meanwhile.
            for place in range(first, start + nbytes, _PART_BYTES):
                self._map.madvise(_MADV_POPULATE_READ, place, min(_PART_BYTES, start + nbytes - place))


class LegacyFile:
    """A bare pickle, read whole into private memory."""

    def __init__(self, header: FileHeader) -> None:
        self._tensors = load_legacy(header.path)

    def part(self, entry: TensorEntry, dim: int, own: Slice) -> Tensor:
        return self._tensors[entry.name].narrow(dim, own.start, own.size)


def open_file(header: FileHeader) -> OpenFile:
    """Open a weight file of any kind. RefusedError where it was changed since its header was read."""
    if header.kind == "legacy":
        return LegacyFile(header)
    if header.kind == "gguf":
        from model.gguf.file import GgufFile  # needs the optional package gguf

        return GgufFile(header)
    return MappedFile(header)


class WeightReader:
    """The weights of an open checkpoint, in Meta's order of rows."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.checkpoint = checkpoint
        self._files: dict[Path, OpenFile] = {}
        self._checks = checks_of(checkpoint)
        self._checked: set[Check] = set()

    def file(self, header: FileHeader) -> OpenFile:
        if header.path not in self._files:
            self._files[header.path] = open_file(header)
        return self._files[header.path]

    def parts(self, weight: Weight, own: Slice, prefer: int = 0) -> Iterator[Tensor]:
        """The parts of `own` (along the weight's cut), in order, unchecked: views where that can be."""
        for piece, part in self.checkpoint.sources(weight, own, prefer):
            yield self._part(piece, weight.cut or 0, part)

    def read(self, weight: Weight, own: Slice) -> Tensor:
        """The slice `own` of a weight along its cut (its first dimension, where it is whole), not to be written to.

        RefusedError where a record that it stands in is damaged or holds a number that is not finite.
        """
        for piece, _ in self.checkpoint.sources(weight, own):
            check = self._checks[piece.header.path, piece.entry.record]
            if check not in self._checked:
                check_record(check)
                self._checked.add(check)
        parts = list(self.parts(weight, own))
        return parts[0] if len(parts) == 1 else torch.cat(parts, weight.cut or 0)

    def _part(self, piece: Piece, dim: int, part: Slice) -> Tensor:
        tensor = self.file(piece.header).part(piece.entry, dim, part.from_start_of(piece.held))
        return meta_rows(tensor, piece.turned) if piece.turned else tensor


@contextmanager
def open_weights(checkpoint: Checkpoint) -> Iterator[WeightReader]:
    """Read a checkpoint's weights. RefusedError where a file was changed since its header was read, or meanwhile."""
    check_unchanged(checkpoint)
    yield WeightReader(checkpoint)
    check_unchanged(checkpoint)


def check_unchanged(checkpoint: Checkpoint) -> None:
    """RefusedError where a file is not the one whose header was read."""
    for header in checkpoint.files:
        with open_regular(header.path) as file:
            header.check_unchanged(FileStamp.of(file))


def check_in_place(checkpoint: Checkpoint) -> None:
    """RankFailedError where a file was written over while weights are used in it.

    One that was replaced by another of its name, or removed, is no matter: the old one stays mapped.
    """
    for header in checkpoint.files:
        try:
            status = os.stat(header.path)
        except OSError:
            continue
        same_file = status.st_ino == header.stamp.inode
        if same_file and (status.st_size, status.st_mtime_ns) != (header.stamp.size, header.stamp.mtime_ns):
            sizes = f"its size was {header.stamp.size} and is {status.st_size}"
            what = sizes if status.st_size != header.stamp.size else "its time has changed"
            raise RankFailedError(
                f"{header.path}: was written over while the model runs from it ({what}); load the model again, and "
                "replace files by renaming others over them"
            )


def meta_rows(x: Tensor, head_dim: int) -> Tensor:
    """Rows of whole heads in Hugging Face's rotary order (both halves of a head) as Meta has them (neighbours).

    [heads * head_dim, D] to the same shape; new memory (transformers, convert_llama_weights_to_hf.py).
    """
    return x.view(-1, 2, head_dim // 2, x.shape[1]).transpose(1, 2).reshape(x.shape)


def hugging_face_rows(x: Tensor, head_dim: int) -> Tensor:
    """The opposite of `meta_rows`."""
    return x.view(-1, head_dim // 2, 2, x.shape[1]).transpose(1, 2).reshape(x.shape)
