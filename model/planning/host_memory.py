"""Which bytes of a rank's weights stay in their mapped files and which are copied. Headers only; no torch.

Follows `checkpoint/loading.py`: on a CPU a slice that stands in one piece, in the dtype of the run, is used where
it is. One that is to be quantised is read from its file, and copied first only where it is put together or turned.
Mapped pages count in a process's resident memory (RssFile), but processes share them, and the system can
drop and re-read them; copies are private (RssAnon).
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import NamedTuple

from model.checkpoint.checkpoint import Checkpoint, Piece
from model.checkpoint.files import DTYPE_BYTES
from model.cuts import Weight
from model.quantisation import bytes_of, format_of
from model.split import Split
from parallel.kernels.formats import Quantisation
from parallel.slices import Slice

# checkpoint/staging.py: two pinned buffers.
_STAGING_BYTES = 2 * 64 * 2**20
# checkpoint/loading.py: tensors that stand elsewhere are copied.
_ALIGNMENT_BYTES = 16
_MAPPED_KINDS = ("torch", "safetensors")
# Linux maps a large folio as a whole, up to 2 MiB: half of one at each end, on average. A smaller tensor has smaller
# folios, about half its size. (Measured on Linux 6.18 with ext4; older kernels map 64 KiB.)
_AROUND_BYTES = 2**20


@dataclass(frozen=True, slots=True, kw_only=True)
class HostMemory:
    """A rank's host memory for loading its weights and for keeping them there, in bytes."""

    # Weights in memory of this process's own, at their worst moment; on the way to a GPU only what must be put
    # together or turned on the host before it is quantised.
    copied_bytes: int
    # Pages of files that stay mapped since weights are used there; what was copied out of these files is among them.
    kept_bytes: int
    # Pages of other files, mapped while their weights are copied.
    passing_bytes: int
    # Buffers on the way to a GPU.
    staging_bytes: int

    @property
    def mapped_bytes(self) -> int:
        """All mapped pages at the end of loading."""
        return self.kept_bytes + self.passing_bytes


def assumed_host_memory(
    weights_bytes: int, stored: str, dtype: str, device: str, quantised_bytes: int = 0, saved_bytes: int = 0
) -> HostMemory:
    """Of files that are not there: shards in dtype `stored`, one for each rank.

    `quantised_bytes`: of the weights, those that are quantised; `saved_bytes`: how much more these are in `dtype`.
    """
    file_bytes = (weights_bytes + saved_bytes) * DTYPE_BYTES[stored] // DTYPE_BYTES[dtype]
    stay = device == "cpu" and stored == dtype
    return HostMemory(
        copied_bytes=0 if device == "cuda" else quantised_bytes if stay else weights_bytes,
        kept_bytes=file_bytes if stay else 0,
        passing_bytes=0 if stay else file_bytes,
        staging_bytes=_staging(device),
    )


def host_memories(
    checkpoint: Checkpoint, split: Split, dtype: str, device: str, quantize: Quantisation = "none"
) -> tuple[HostMemory, ...]:
    """Of a checkpoint whose headers were read: each rank's."""
    tallies = [_Tally() for _ in range(split.mp)]
    for weight in checkpoint.weights:
        chosen = format_of(weight.name, quantize)
        for rank, own in enumerate(weight.slices(split)):
            sources = checkpoint.sources(weight, own, checkpoint.preferred(rank, split.mp))
            stays = device == "cpu" and chosen == "none" and _stays(weight, sources, dtype)
            tallies[rank].take(weight, sources, stays)
            if chosen != "none":
                tallies[rank].passing += _passing_bytes(weight, own, sources)
                tallies[rank].quantised += bytes_of(weight.shape_of(own), chosen, 0) if device == "cpu" else 0
            elif device == "cpu" and not stays:
                tallies[rank].copied += prod(weight.shape_of(own)) * DTYPE_BYTES[dtype]
    return tuple(tally.total(_staging(device)) for tally in tallies)


@dataclass(slots=True)
class _Tally:
    """What one rank reads and keeps, counted up weight by weight."""

    copied: int = 0
    # Copies of weights as they are stored, each of which is given back when it has been quantised.
    passing: int = 0
    quantised: int = 0
    touched: "Counter[_Place]" = field(default_factory=Counter)
    limits: "dict[_Place, int]" = field(default_factory=dict)
    # Files in which weights are used.
    homes: set[Path] = field(default_factory=set)
    # Bare pickles are read whole.
    pickles: dict[Path, int] = field(default_factory=dict)

    def take(self, weight: Weight, sources: Sequence[tuple[Piece, Slice]], stays: bool) -> None:
        for piece, part in sources:
            path = piece.header.path
            if piece.header.kind in _MAPPED_KINDS:
                place = _Place(path, piece.entry.start)
                self.touched[place] += _touched_bytes(weight, piece, part)
                self.limits[place] = piece.entry.nbytes
            elif piece.header.kind == "legacy":
                self.pickles[path] = piece.header.stamp.size
            if stays:
                self.homes.add(path)

    def total(self, staging_bytes: int) -> HostMemory:
        mapped = {True: 0, False: 0}
        for place, nbytes in self.touched.items():
            mapped[place.path in self.homes] += min(nbytes, self.limits[place])
        return HostMemory(
            # They are quantised in order, so what comes and what goes outweigh each other on the way.
            copied_bytes=self.copied + sum(self.pickles.values()) + max(self.passing, self.quantised),
            kept_bytes=mapped[True],
            passing_bytes=mapped[False],
            staging_bytes=staging_bytes,
        )


class _Place(NamedTuple):
    """Where a tensor starts in the files. Two weights may stand in one place (a tied embedding): it counts once."""

    path: Path
    start: int


def _staging(device: str) -> int:
    return _STAGING_BYTES if device == "cuda" else 0


def _stays(weight: Weight, sources: Sequence[tuple[Piece, Slice]], dtype: str) -> bool:
    """Whether a slice is used where it stands."""
    (piece, part), *others = sources
    if others or piece.turned or piece.entry.dtype != dtype or not _whole_rows(weight, piece, part):
        return False
    start = piece.entry.start + _offset_bytes(weight, piece, part)
    return piece.header.kind == "legacy" or (piece.header.kind in _MAPPED_KINDS and start % _ALIGNMENT_BYTES == 0)


def _passing_bytes(weight: Weight, own: Slice, sources: Sequence[tuple[Piece, Slice]]) -> int:
    """Of a slice that is copied in the files' dtype before it is quantised; 0 where it is read where it stands."""
    (piece, _), *others = sources
    if not others and not piece.turned:
        return 0
    return prod(weight.shape_of(own)) * DTYPE_BYTES[piece.entry.dtype]


def _whole_rows(weight: Weight, piece: Piece, part: Slice) -> bool:
    return weight.cut != 1 or part == piece.held


def _offset_bytes(weight: Weight, piece: Piece, part: Slice) -> int:
    """From the start of a piece to the part of it, where its rows are whole."""
    if weight.cut == 1:
        return 0
    return part.from_start_of(piece.held).start * (piece.entry.nbytes // piece.held.size)


def _touched_bytes(weight: Weight, piece: Piece, part: Slice) -> int:
    """Pages that reading a part of a piece brings in, with those that the system maps around them.

    Of rows that are read in part that is everything.
    """
    if weight.cut == 1:
        return piece.entry.nbytes
    row_bytes = piece.entry.nbytes // piece.held.size
    before, after = part.start - piece.held.start, piece.held.stop - part.stop
    around = min(_AROUND_BYTES, piece.entry.nbytes // 4)
    return part.size * row_bytes + min(before * row_bytes, around) + min(after * row_bytes, around)
