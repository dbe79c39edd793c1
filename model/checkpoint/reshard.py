"""Cut a Meta checkpoint anew for another number of ranks, into a folder of its own.

Streaming: memory holds one tensor of one shard. Atomic: the shards are written to a hidden folder beside
DST, flushed, and renamed as a whole; a kill or a full disk leaves no DST, and SRC is only read.
"""

import errno
import fcntl
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import torch
from torch import Tensor

from model.checkpoint.loading import Progress, ShardReader, open_shard
from model.checkpoint.manifest import MANIFEST, manifest_text
from model.checkpoint.meta_folder import Checkpoint
from model.checkpoint.shard_writer import PlannedTensor, write_shard
from model.checkpoint.torch_file import read_header
from model.cuts import Weight, all_weights
from model.tokenizers.opening import find_tokenizer
from parallel.errors import RefusedError

# Room for headers, pickles and small files beside the tensors.
_SPARE_BYTES = 2**20
_SMALL_FILE_BYTES = 64 * 2**20


def reshard(source: Checkpoint, destination: Path, mp: int, progress: Progress | None = None) -> None:
    """Write `source` cut for `mp` ranks to `destination`, which must not exist.

    The embedding is cut along the dimension it has in `source`. RefusedError where a weight does not
    split evenly, the disk is too small, or a weight of `source` is damaged.
    """
    weights = all_weights(source.params, source.embedding_dim)
    for weight in weights:
        weight.shape_at(mp)
    total = _bytes_to_write(source, weights, mp)
    _check_destination(destination, total)
    done = 0

    def wrote(count: int) -> None:
        nonlocal done
        done += count
        if progress is not None:
            progress(done, total)

    def fill(partial: Path) -> None:
        with ExitStack() as stack:
            readers = [stack.enter_context(open_shard(header)) for header in source.shards]
            for rank in range(mp):
                plan = [_plan(source, readers, weight, rank, mp) for weight in weights]
                write_shard(partial / f"consolidated.{rank:02d}.pth", plan, wrote)
        headers = [read_header(partial / f"consolidated.{rank:02d}.pth") for rank in range(mp)]
        _copy_small_files(source.folder, partial)
        (partial / MANIFEST).write_text(manifest_text(headers), encoding="utf-8")

    write_folder(destination, fill)


def _bytes_to_write(source: Checkpoint, weights: list[Weight], mp: int) -> int:
    sizes = {weight.name: source.shards[0].tensors[weight.name] for weight in weights}
    shares = {name: entry.nbytes * source.mp for name, entry in sizes.items()}
    return sum(shares[weight.name] if weight.cut is not None else sizes[weight.name].nbytes * mp for weight in weights)


def _check_destination(destination: Path, needed_bytes: int) -> None:
    if destination.exists() or destination.is_symlink():
        raise RefusedError(f"{destination}: is there already; give a folder that does not exist, or remove it first")
    parent = destination.resolve().parent
    if not parent.is_dir():
        raise RefusedError(f"{parent}: does not exist; make it first, or give another place for {destination.name}")
    if not os.access(parent, os.W_OK):
        raise RefusedError(f"{parent}: may not be written to; give another place for {destination.name}")
    free_bytes = shutil.disk_usage(parent).free
    if free_bytes < needed_bytes + _SPARE_BYTES:
        raise RefusedError(
            f"{parent}: has {free_bytes} bytes free, {needed_bytes + _SPARE_BYTES} are needed for {destination.name}; "
            "make room, or give another place"
        )


def _plan(source: Checkpoint, readers: list[ShardReader], weight: Weight, rank: int, mp: int) -> PlannedTensor:
    dtype = getattr(torch, source.shards[0].tensors[weight.name].dtype)
    return PlannedTensor(weight.name, weight.shape_at(mp), dtype, lambda: _cut(readers, weight, rank, mp))


def _cut(readers: list[ShardReader], weight: Weight, rank: int, mp: int) -> Tensor:
    """Rank `rank`'s slice of a weight, put together from the source shards that overlap it."""
    own = weight.slice_of(rank, mp)
    if own is None or weight.cut is None:
        return readers[0].read(weight.name)
    parts: list[Tensor] = []
    for source_rank, reader in enumerate(readers):
        held = weight.slice_of(source_rank, len(readers))
        assert held is not None
        start, stop = max(own.start, held.start), min(own.stop, held.stop)
        if start < stop:
            parts.append(reader.read(weight.name).narrow(weight.cut, start - held.start, stop - start))
    return parts[0] if len(parts) == 1 else torch.cat(parts, weight.cut)


def _copy_small_files(source: Path, destination: Path) -> None:
    """Carry along params.json, the tokenizer (Meta's downloads have it in the parent) and whatever else is small."""
    for path in sorted(source.iterdir()):
        wanted = path.suffix in (".json", ".model", ".md", ".txt") and path.name != MANIFEST
        if wanted and path.is_file() and path.stat().st_size <= _SMALL_FILE_BYTES:
            shutil.copyfile(path, destination / path.name)
    tokenizer = find_tokenizer(source)
    if tokenizer is not None and not (destination / tokenizer.name).exists():
        shutil.copyfile(tokenizer, destination / tokenizer.name)


def write_folder(destination: Path, fill: Callable[[Path], None]) -> None:
    """Make the folder `destination` as a whole or not at all: filled under a hidden name, then renamed.

    The hidden folder is locked while it is being filled, so that what a killed run left behind can be told
    from what another run is writing, and is removed by the next.
    """
    parent = destination.resolve().parent
    prefix = f".{destination.name}.partial-"
    for stale in parent.glob(f"{prefix}*"):
        with _locked(stale) as ours:
            if ours:
                shutil.rmtree(stale, ignore_errors=True)
    partial: Path | None = None
    try:
        partial = Path(tempfile.mkdtemp(prefix=prefix, dir=parent))
        partial.chmod(0o755)
        with _locked(partial):
            fill(partial)
            for path in sorted(partial.iterdir()):
                _flush(path)
            _flush(partial)
            if destination.exists():
                raise RefusedError(f"{destination}: was made by somebody else meanwhile; nothing was written")
            partial.rename(destination)
        _flush(parent)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            free_bytes = shutil.disk_usage(parent).free
            raise RefusedError(
                f"{parent}: the disk is full ({free_bytes} bytes free) while writing {destination.name}; "
                "nothing was left there: make room and start again"
            ) from None
        raise RefusedError(f"{destination}: cannot be written: {error.strerror} ({error.filename})") from None
    finally:
        if partial is not None:
            shutil.rmtree(partial, ignore_errors=True)


@contextmanager
def _locked(folder: Path) -> Iterator[bool]:
    """Hold the folder's lock; False where another process holds it. It ends with the process."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield True
    except BlockingIOError:
        yield False
    finally:
        os.close(descriptor)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
