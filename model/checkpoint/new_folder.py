"""Making a folder as a whole or not at all, whatever happens meanwhile."""

import contextlib
import errno
import fcntl
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from model.checkpoint.files import open_regular, reading
from parallel.errors import RefusedError

# Room for headers, pickles and small files beside the tensors.
_SPARE_BYTES = 2**20
# What goes along with the weights is not larger.
SMALL_FILE_BYTES = 64 * 2**20


def check_destination(destination: Path, needed_bytes: int, source: Path) -> None:
    """Refuse a destination that is there, cannot be made, has no room for `needed_bytes`, or lies in `source`."""
    try:
        _check_destination(destination, needed_bytes, source)
    except (OSError, RuntimeError) as error:  # of odd paths: too long, a loop of links, a folder that is closed to us
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise RefusedError(f"{destination}: cannot be made: {reason}; give another place") from None


def _check_destination(destination: Path, needed_bytes: int, source: Path) -> None:
    if source.resolve() in destination.resolve().parents:
        raise RefusedError(f"{destination}: lies in {source}, which is only read; give another place")
    if destination.exists() or destination.is_symlink():
        raise RefusedError(f"{destination}: is there already; give a folder that does not exist, or remove it first")
    parent = destination.resolve().parent
    if parent.exists() and not parent.is_dir():
        raise RefusedError(f"{parent}: is a file, not a folder; give another place for {destination.name}")
    if not parent.is_dir():
        raise RefusedError(f"{parent}: does not exist; make it first, or give another place for {destination.name}")
    if not os.access(parent, os.W_OK | os.X_OK | os.R_OK):
        raise RefusedError(f"{parent}: may not be written to; give another place for {destination.name}")
    free_bytes = shutil.disk_usage(parent).free
    if free_bytes < needed_bytes + _SPARE_BYTES:
        raise RefusedError(
            f"{parent}: has {free_bytes} bytes free, {needed_bytes + _SPARE_BYTES} are needed for {destination.name}; "
            "make room, or give another place"
        )


def carry(path: Path, folder: Path) -> None:
    """Copy a small file into `folder`. RefusedError where it is no plain file, or cannot be read."""
    with open_regular(path) as source, reading(path):
        content = source.read(SMALL_FILE_BYTES)
    (folder / path.name).write_bytes(content)


def write_folder(destination: Path, fill: Callable[[Path], None]) -> None:
    """Make the folder `destination` as a whole or not at all: filled under a hidden name, then renamed.

    The hidden folder is locked while it is being filled, so that what a killed run left behind can be told
    from what another run is writing, and is removed by the next.
    """
    parent = destination.resolve().parent
    prefix = f".{destination.name}.partial-"
    for stale in [path for path in parent.iterdir() if path.name.startswith(prefix)]:
        # Another run may have removed it meanwhile.
        with contextlib.suppress(OSError), _locked(stale) as ours:
            if ours:
                shutil.rmtree(stale, ignore_errors=True)
    partial: Path | None = None
    try:
        with ExitStack() as stack:
            partial = _make_locked(parent, prefix, stack)
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


def _make_locked(parent: Path, prefix: str, stack: ExitStack) -> Path:
    """A new hidden folder that is ours until `stack` ends."""
    while True:
        made = Path(tempfile.mkdtemp(prefix=prefix, dir=parent))
        # Another run may have taken it for a killed one's before the lock was ours.
        with contextlib.suppress(FileNotFoundError):
            if stack.enter_context(_locked(made)) and made.exists():
                made.chmod(0o755)
                return made


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
