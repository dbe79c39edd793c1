"""Reading every number of a checkpoint: every fault, and digests to compare files and models by.

A weight is a task: its records are checked, then what lies in memory by then is digested, as the uncut
weight and as a part of its file. So that the disk is read once, tasks go in the order of the files.
"""

import hashlib
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from model.checkpoint.checking import Cancelled, Check, DamagedRecord, check_record, checks_of
from model.checkpoint.checkpoint import Checkpoint
from model.checkpoint.files import AGAIN
from model.checkpoint.reading import WeightReader, open_weights
from model.cuts import Weight
from model.inspection.file_sums import CHECKLIST, FileSums, md5_of, read_checklist
from model.inspection.headers import EMBEDDING, OUTPUT
from model.inspection.report import ChecklistEntry, DeepReport
from parallel.errors import RefusedError
from parallel.slices import Slice

_CHUNK_BYTES = 2**21


def read_deeply(checkpoint: Checkpoint, progress: Callable[[int, int], None] | None = None) -> DeepReport:
    """Read every number, on as many threads as torch uses. RefusedError lists every fault.

    `progress` is called with bytes read so far and bytes in all.
    """
    folder = checkpoint.files[0].path.parent
    listed = read_checklist(folder / CHECKLIST)
    with open_weights(checkpoint) as reader:
        reading = _Reading(reader, set(listed or {}), progress)
        faults = reading.run()
    found = None if listed is None else tuple(_compared(folder, reading, listed))
    faults += [
        f"{folder / entry.file}: is not the file that {CHECKLIST} lists (MD5 {reading.sums[folder / entry.file].md5}, "
        f"listed {(listed or {})[entry.file]}); get the file again"
        for entry in found or ()
        if entry.found == "different" and folder / entry.file in reading.sums
    ]
    if faults:
        raise RefusedError(faults[0] if len(faults) == 1 else "\n".join([f"{len(faults)} faults", *faults]))
    return DeepReport(
        read_bytes=reading.total,
        checksums=all(check.crc32 is not None for check in reading.checks),
        tied=reading.digests[EMBEDDING] == reading.digests[OUTPUT],
        content_sha256=_content_digest(checkpoint, reading.digests),
        sha256={path.name: sums.sha256 for path, sums in reading.sums.items()},
        checklist=found,
    )


def _content_digest(checkpoint: Checkpoint, digests: Mapping[str, str]) -> str:
    """Of a line for each uncut weight, in Meta's order: name, dtype, shape and the SHA-256 of its bytes."""
    whole = hashlib.sha256()
    for weight in checkpoint.weights:
        dtype = checkpoint.pieces[weight.name][0].entry.dtype
        whole.update(f"{weight.name} {dtype} {list(weight.shape)} {digests[weight.name]}\n".encode())
    return whole.hexdigest()


@dataclass(frozen=True, slots=True)
class _Task:
    """A weight, and the records to be checked with it: each record stands in one task."""

    weight: Weight
    checks: tuple[Check, ...]


class _Reading:
    """One reading of all files, and what it found."""

    def __init__(
        self, reader: WeightReader, with_md5: set[str], progress: Callable[[int, int], None] | None = None
    ) -> None:
        self.reader, self.checkpoint = reader, reader.checkpoint
        self.checks = list(checks_of(self.checkpoint).values())
        self.total = sum(check.nbytes for check in self.checks)
        self.digests: dict[str, str] = {}
        self.sums = {header.path: FileSums(header, header.path.name in with_md5) for header in self.checkpoint.files}
        self._progress, self._done, self._lock = progress, 0, threading.Lock()
        self._cancelled = threading.Event()

    def run(self) -> list[str]:
        """Read everything; every fault, in the order of the model."""
        for header in self.checkpoint.files:
            self.reader.file(header)
        tasks = _tasks(self.checkpoint, self.checks)
        threads = torch.get_num_threads()
        # hashlib, zlib and torch let other threads run while they work; each of ours sums by itself.
        with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            futures = {task.weight.name: pool.submit(self._read, task) for task in tasks}
            ends = [pool.submit(sums.finish, self._cancelled) for sums in self.sums.values()]
            try:
                found = {name: future.result() for name, future in futures.items()}
                for end in ends:
                    end.result()
                return [fault for weight in self.checkpoint.weights for fault in found[weight.name]]
            finally:
                self._cancelled.set()
                pool.shutdown(wait=True, cancel_futures=True)
                torch.set_num_threads(threads)

    def _read(self, task: _Task) -> list[str]:
        faults = [fault for check in task.checks for fault in self._faults_of(check)]
        if not faults:
            try:
                faults = self._unequal_copies(task.weight)
                self.digests[task.weight.name] = self._digest(task.weight)
            except RefusedError as error:  # what is decoded is looked at only then
                faults = [str(error)]
        for piece in self.checkpoint.pieces[task.weight.name]:
            entry = piece.entry
            self.sums[piece.header.path].advance(entry.record_start + entry.record_bytes, self._cancelled)
        return faults

    def _faults_of(self, check: Check) -> list[str]:
        try:
            check_record(check, self._count, self._cancelled)
        except RefusedError as error:
            if len(check.entries) == 1 or isinstance(error, DamagedRecord):
                return [str(error)]
            # The first of several tensors was named; others may have faults too.
            middle = len(check.entries) // 2
            halves = [replace(check, entries=some) for some in (check.entries[:middle], check.entries[middle:])]
            return [fault for half in halves for fault in self._faults_of(half)]
        except OSError as error:
            return [f"{check.header.path}: cannot be read: {error.strerror}; {AGAIN}"]
        return []

    def _count(self, nbytes: int) -> None:
        with self._lock:
            self._done += nbytes
            if self._progress is not None:
                self._progress(self._done, self.total)

    def _unequal_copies(self, weight: Weight) -> list[str]:
        """Faults where several files hold the same part of a weight, but not the same numbers."""
        pieces = self.checkpoint.pieces[weight.name]
        if sum(piece.held.size for piece in pieces) == weight.length:
            return []
        dim = weight.cut or 0
        whole = torch.cat(list(self.reader.parts(weight, Slice(0, weight.length))), dim)
        faults = []
        for index, piece in enumerate(pieces):
            (own,) = self.reader.parts(weight, piece.held, prefer=index)
            if not torch.equal(own, whole.narrow(dim, piece.held.start, piece.held.size)):
                faults.append(
                    f"{piece.header.path}: {weight.name} is not equal to its copy in another shard, though both hold "
                    f"the numbers from {piece.held.start} to {piece.held.stop} along dimension {dim}; a shard is of "
                    "another model: get them again"
                )
        return faults

    def _digest(self, weight: Weight) -> str:
        """SHA-256 of the uncut weight's bytes, row by row."""
        found = hashlib.sha256()
        for block in _blocks(list(self.reader.parts(weight, Slice(0, weight.length))), weight.cut or 0):
            if self._cancelled.is_set():
                raise Cancelled
            found.update(block.contiguous().flatten().view(torch.uint8).numpy().data)
        return found.hexdigest()


def _blocks(parts: list[Tensor], dim: int) -> Iterator[Tensor]:
    """A weight whose parts stand side by side along `dim`, in blocks of whole rows that stay in the cache."""
    for group in [parts] if dim == 1 else [[part] for part in parts]:
        row_bytes = sum(part[0].numel() * part.element_size() for part in group)
        step = max(1, _CHUNK_BYTES // row_bytes)
        for start in range(0, len(group[0]), step):
            rows = [part[start : start + step] for part in group]
            yield rows[0] if len(rows) == 1 else torch.cat(rows, 1)


def _tasks(checkpoint: Checkpoint, checks: list[Check]) -> list[_Task]:
    """A task for each weight, in the order in which they stand in the files."""
    check_of = {(check.header.path, entry.record): check for check in checks for entry in check.entries}
    taken: set[Check] = set()
    tasks = []
    for weight in checkpoint.weights:
        mine = [check_of[piece.header.path, piece.entry.record] for piece in checkpoint.pieces[weight.name]]
        tasks.append(_Task(weight, tuple(check for check in mine if check not in taken)))
        taken.update(mine)

    def place(task: _Task) -> tuple[Path, int]:
        first = checkpoint.pieces[task.weight.name][0]
        return first.header.path, first.entry.start

    return sorted(tasks, key=place)


def _compared(folder: Path, reading: _Reading, listed: Mapping[str, str]) -> Iterator[ChecklistEntry]:
    for name, wanted in listed.items():
        path = folder / name
        if path in reading.sums:
            found = reading.sums[path].md5
        elif path.is_file():
            found = md5_of(path)
        else:
            yield ChecklistEntry(file=name, found="missing")
            continue
        yield ChecklistEntry(file=name, found="equal" if found == wanted else "different")
