"""What of a weight file is checked when it is read: the CRC-32 of its records, and that every number is finite.

torch.load checks neither. A record is read once, in pieces that stay in the processor's cache, and each
piece is summed besides: a sum is finite only if all its numbers are (or it overflowed, so a sum that is not
leads to a second look).
"""

import os
import threading
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from model.checkpoint.checkpoint import Checkpoint
from model.checkpoint.files import AGAIN, FileHeader, TensorEntry, open_regular, reading
from model.checkpoint.legacy import load_legacy
from parallel.errors import RefusedError

_CHUNK_BYTES = 2**21


@dataclass(frozen=True, slots=True, eq=False)
class Check:
    """A record to be checked, and the tensors that stand in it."""

    header: FileHeader
    record: str
    start: int
    nbytes: int
    crc32: int | None
    entries: tuple[TensorEntry, ...]


class DamagedRecord(RefusedError):
    """A record is not what the file's directory says, whatever tensors stand in it."""


class Cancelled(Exception):
    """Somebody else failed: the work is no longer wanted."""


def checks_of(checkpoint: Checkpoint) -> dict[tuple[Path, str], Check]:
    """Every record that holds a weight of the model, by file and record, in order of files."""
    entries: dict[tuple[Path, str], dict[str, TensorEntry]] = {}
    headers = {header.path: header for header in checkpoint.files}
    for pieces in checkpoint.pieces.values():
        for piece in pieces:
            entries.setdefault((piece.header.path, piece.entry.record), {})[piece.entry.name] = piece.entry
    return {
        (path, record): _check(headers[path], tuple(found.values()))
        for (path, record), found in sorted(entries.items())
    }


def _check(header: FileHeader, entries: tuple[TensorEntry, ...]) -> Check:
    first = entries[0]
    nbytes = sum(entry.nbytes for entry in entries) if header.kind == "legacy" else first.record_bytes
    return Check(header, first.record, first.record_start, nbytes, first.crc32, entries)


def check_record(
    check: Check, done: Callable[[int], None] = lambda _: None, cancelled: threading.Event | None = None
) -> None:
    """Read a record and refuse it where it is damaged or holds a number that is not finite.

    `done` is called with the bytes of each piece. Raises Cancelled soon after `cancelled` is set.
    """
    if check.header.kind == "legacy":
        tensors = load_legacy(check.header.path)
        for entry in check.entries:
            _refuse_non_finite(check.header, entry, tensors[entry.name])
            done(entry.nbytes)
        return
    if check.header.kind == "gguf":
        done(check.nbytes)
        return  # quantised blocks have no checksum; their numbers are looked at when they are decoded
    dtype = getattr(torch, check.entries[0].dtype)
    crc32, suspicious = 0, False
    buffer = bytearray(min(_CHUNK_BYTES, check.nbytes))
    with open_regular(check.header.path) as file:
        for start in range(0, check.nbytes, _CHUNK_BYTES):
            if cancelled is not None and cancelled.is_set():
                raise Cancelled
            chunk = memoryview(buffer)[: min(_CHUNK_BYTES, check.nbytes - start)]
            _fill(check.header, file.fileno(), chunk, check.start + start)
            crc32 = zlib.crc32(chunk, crc32)
            numbers = torch.frombuffer(chunk, dtype=dtype)
            suspicious = suspicious or not bool(torch.isfinite(numbers.sum()))
            done(len(chunk))
    if check.crc32 is not None and crc32 != check.crc32:
        named = [entry.name for entry in check.entries]
        names = ", ".join(named[:4]) + (f" and {len(named) - 4} more" if len(named) > 4 else "")
        raise DamagedRecord(
            f"{check.header.path}: {names} is damaged: record {check.record} has CRC-32 {crc32:08x}, the file says "
            f"{check.crc32:08x}; get the file again"
        )
    if suspicious:
        for entry in check.entries:
            _refuse_non_finite(check.header, entry, _read_tensor(check.header, entry))


def _fill(header: FileHeader, descriptor: int, chunk: memoryview, start: int) -> None:
    filled = 0
    while filled < len(chunk):
        with reading(header.path):
            count = os.preadv(descriptor, [chunk[filled:]], start + filled)
        if count == 0:
            raise DamagedRecord(f"{header.path}: ends at byte {start + filled}, though its header says more; {AGAIN}")
        filled += count


def _read_tensor(header: FileHeader, entry: TensorEntry) -> Tensor:
    with open_regular(header.path) as file:
        data = bytearray(entry.nbytes)
        _fill(header, file.fileno(), memoryview(data), entry.start)
    return torch.frombuffer(data, dtype=getattr(torch, entry.dtype)).view(entry.shape)


def _refuse_non_finite(header: FileHeader, entry: TensorEntry, tensor: Tensor) -> None:
    bad = torch.nonzero(~torch.isfinite(tensor))
    if len(bad):
        first = bad[0].tolist()
        value = tensor[tuple(first)].item()
        raise RefusedError(
            f"{header.path}: {entry.name} holds {len(bad)} "
            f"number{'s that are' if len(bad) > 1 else ' that is'} not finite, the "
            f"first {value} at {first}; the weights are spoilt: get the file again"
        )


def deal_checks(checks: Mapping[tuple[Path, str], Check], wanted: list[set[tuple[Path, str]]]) -> list[list[Check]]:
    """Who checks what: each record once, by one of the processes that want it, about as many bytes each.

    `wanted[i]`: the records that process i reads of. The same on every process.
    """
    loads = [0] * len(wanted)
    dealt: list[list[Check]] = [[] for _ in wanted]
    # The largest first: the small ones then even out.
    for key, check in sorted(checks.items(), key=lambda item: (-item[1].nbytes, item[0])):
        takers = [index for index, keys in enumerate(wanted) if key in keys]
        if takers:
            taker = min(takers, key=lambda index: loads[index])
            loads[taker] += check.nbytes
            dealt[taker].append(check)
    return dealt
