"""The launcher's private folder: where ranks meet, say why they fail, and write down where they are."""

import contextlib
import errno
import fcntl
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from parallel.errors import RefusedError

_PREFIX = "shardrun-"
_LOCK = "launcher.lock"
_YOUNG_S = 10.0
_ROOM_BYTES = 2**20


@contextmanager
def private_folder() -> Iterator[Path]:
    """A new folder that only this user can read, gone at the end. Those of launchers that were killed go too."""
    parent = Path(tempfile.gettempdir())
    _remove_abandoned(parent)
    folder = None
    try:
        folder = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=parent))
        lock = os.open(folder / _LOCK, os.O_CREAT | os.O_RDWR, 0o600)
        _check_room(lock)
    except OSError as error:
        if folder is not None:
            _remove(folder)
        raise RefusedError(
            f"the temporary folder {parent} cannot be written to: {error.strerror}; make room there, or set TMPDIR to "
            "another"
        ) from None
    try:
        # Held for as long as this process lives: nobody takes the folder for an abandoned one. Where the file system
        # has no locks nobody gets this one, and abandoned folders stay.
        with contextlib.suppress(OSError):
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield folder
    finally:
        _remove(folder)
        os.close(lock)


def _check_room(file: int) -> None:
    """OSError where the disk is full: what ranks leave there is small, and must not be lost."""
    try:
        os.posix_fallocate(file, 0, _ROOM_BYTES)
    except OSError as error:
        # A limit on the size of each file (ulimit -f) says nothing of the disk.
        if error.errno != errno.EFBIG:
            raise


def _remove(folder: Path) -> None:
    """The lock last: an interrupted removal is gone on with by a later start."""
    for path in folder.iterdir():
        if path.name != _LOCK:
            with contextlib.suppress(OSError):
                path.unlink()
    shutil.rmtree(folder, ignore_errors=True)


def _remove_abandoned(parent: Path) -> None:
    with contextlib.suppress(OSError):
        for folder in parent.glob(f"{_PREFIX}*"):
            with contextlib.suppress(OSError):
                _remove_if_abandoned(folder)


def _remove_if_abandoned(folder: Path) -> None:
    """A folder of ours whose launcher has gone: nobody holds its lock. One that was just made is not locked yet."""
    status = folder.lstat()
    if status.st_uid != os.getuid() or time.time() - status.st_mtime < _YOUNG_S:
        return
    lock = os.open(folder / _LOCK, os.O_RDWR | os.O_NOFOLLOW)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        _remove(folder)
    finally:
        os.close(lock)
