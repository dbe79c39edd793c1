"""Loading: each rank takes its slices of the files to their final place, and the ranks share the checking.

On a CPU, in the dtype of the files, the final place of a slice that stands in one piece is the mapped file
itself: nothing is copied, processes share the pages, and the system can drop and re-read them. What must be
converted, put together, turned or brought to a GPU is copied once. docs/adr/0008-weights-stay-in-their-files.md
"""

import threading
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from model.checkpoint.checking import Cancelled, Check, check_record, checks_of, deal_checks
from model.checkpoint.checkpoint import Checkpoint
from model.checkpoint.reading import MappedFile, WeightReader, open_weights
from model.checkpoint.staging import Stager
from model.cuts import Weight
from parallel.position import position
from parallel.slices import Slice

# Called with bytes read so far and bytes in all.
Progress = Callable[[int, int], None]
# What torch's own allocator gives, and what its kernels like.
_ALIGNMENT_BYTES = 16


def load_weights(
    checkpoint: Checkpoint,
    rank: int,
    ranks: int,
    dtype: torch.dtype,
    device: torch.device,
    neighbours: range | None = None,
    progress: Progress | None = None,
    as_stored: Collection[str] = (),
) -> dict[str, Tensor]:
    """Rank `rank`'s slice of every weight, in `dtype` on `device`. Not to be written to.

    `neighbours`: the ranks of this host (this one alone, where it is None): each record that any of them
    reads is checked by one of them, so a slice may be used only after all of them have returned. `as_stored`: names
    of weights that are only read once more, to be converted: they come to the host in the files' dtype, of any
    strides, and are copied only where they are put together or turned.
    RefusedError where a file is damaged, or was changed since its header was read.
    """
    neighbours = neighbours or range(rank, rank + 1)
    split = checkpoint.split(ranks)
    owned = {weight.name: weight.slices(split) for weight in checkpoint.weights}
    checks = checks_of(checkpoint)
    wanted = [_records(checkpoint, owned, neighbour, ranks) for neighbour in neighbours]
    mine = deal_checks(checks, wanted)[neighbours.index(rank)]
    counted = running_total(sum(check.nbytes for check in mine), progress)
    with open_weights(checkpoint) as reader, _checking(mine, counted):
        place = _Placer(reader, dtype, device)
        prefer = checkpoint.preferred(rank, ranks)
        position.phase("loading", len(checkpoint.weights), "weight")
        weights = {}
        for number, weight in enumerate(checkpoint.weights, 1):
            bring = place.as_stored if weight.name in as_stored else place
            weights[weight.name] = bring(weight, owned[weight.name][rank], prefer)
            position.step(number)
        place.finish()
    return weights


def _records(
    checkpoint: Checkpoint, owned: dict[str, tuple[Slice, ...]], rank: int, ranks: int
) -> set[tuple[Path, str]]:
    """The records that a rank reads of."""
    prefer = checkpoint.preferred(rank, ranks)
    return {
        (piece.header.path, piece.entry.record)
        for weight in checkpoint.weights
        for piece, _ in checkpoint.sources(weight, owned[weight.name][rank], prefer)
    }


def running_total(total: int, progress: Progress | None) -> Callable[[int], None]:
    """Turns the bytes of each step into bytes so far and in all. May be called by several threads."""
    done, lock = 0, threading.Lock()

    def count(nbytes: int) -> None:
        nonlocal done
        position.tick()
        if progress is not None:
            with lock:
                done += nbytes
                progress(done, total)

    return count


@contextmanager
def _checking(checks: list[Check], counted: Callable[[int], None]) -> Iterator[None]:
    """Check records on this rank's threads while the body runs; the first fault, in order, ends both."""
    cancelled = threading.Event()
    threads = torch.get_num_threads()
    # zlib and torch both let other threads run while they work; each of ours sums by itself.
    with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        futures: list[Future[None]] = [pool.submit(check_record, check, counted, cancelled) for check in checks]
        try:
            yield
            position.phase("checking what was loaded")
            _wait_for(futures)
        finally:
            cancelled.set()
            pool.shutdown(wait=True, cancel_futures=True)
            torch.set_num_threads(threads)


def _wait_for(futures: list[Future[None]]) -> None:
    for future in futures:
        try:
            future.result()
        except Cancelled:
            raise AssertionError("a check was cancelled before one failed") from None


class _Placer:
    """Brings slices to their final place."""

    def __init__(self, reader: WeightReader, dtype: torch.dtype, device: torch.device) -> None:
        self.reader, self.dtype, self.device = reader, dtype, device
        self.stager = Stager(device) if device.type == "cuda" else None

    def __call__(self, weight: Weight, own: Slice, prefer: int) -> Tensor:
        parts = list(self.reader.parts(weight, own, prefer))
        if len(parts) == 1 and self._can_stay(parts[0]):
            self._bring_in(weight, own, prefer, parts[0])
            return parts[0]
        placed = torch.empty(weight.shape_of(own), dtype=self.dtype, device=self.device)
        start, dim = 0, weight.cut or 0
        for part in parts:
            place = placed.narrow(dim, start, part.shape[dim])
            if self.stager is None:
                place.copy_(part)
            else:
                self.stager.copy(part, place)
            start += part.shape[dim]
        return placed

    def as_stored(self, weight: Weight, own: Slice, prefer: int) -> Tensor:
        """The slice as the files have it."""
        parts = list(self.reader.parts(weight, own, prefer))
        if len(parts) > 1:
            return torch.cat(parts, weight.cut or 0)
        if parts[0].is_contiguous():
            self._bring_in(weight, own, prefer, parts[0])
        return parts[0]

    def _can_stay(self, part: Tensor) -> bool:
        return (
            self.device.type == "cpu"
            and part.dtype == self.dtype
            and part.is_contiguous()
            and part.data_ptr() % _ALIGNMENT_BYTES == 0
        )

    def _bring_in(self, weight: Weight, own: Slice, prefer: int, found: Tensor) -> None:
        (piece, part), *_ = self.reader.checkpoint.sources(weight, own, prefer)
        file = self.reader.file(piece.header)
        if isinstance(file, MappedFile):
            row_bytes = piece.entry.nbytes // piece.held.size
            offset = part.from_start_of(piece.held).start * row_bytes if weight.cut in (0, None) else 0
            file.bring_in(piece.entry.start + offset, found.nbytes)

    def finish(self) -> None:
        """Wait for copies that are under way."""
        if self.stager is not None:
            self.stager.wait()
