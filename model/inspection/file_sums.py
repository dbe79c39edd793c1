"""Digests of files, and checklist.chk: the MD5 sums that Meta's downloads carry."""

import hashlib
import os
import re
import threading
from pathlib import Path

from model.checkpoint.checking import Cancelled
from model.checkpoint.files import AGAIN, FileHeader, open_regular
from parallel.errors import RefusedError

# Lines of MD5 and file name, as md5sum writes them.
CHECKLIST = "checklist.chk"
_CHECKLIST_BYTES = 2**20
_MD5_LINE = re.compile(r"([0-9a-fA-F]{32}) [ *](\S.*)")
_CHUNK_BYTES = 2**21


class FileSums:
    """The digests of a file's bytes, taken as they come into memory."""

    def __init__(self, header: FileHeader, with_md5: bool) -> None:
        self._header = header
        self._place = 0
        self._lock = threading.Lock()
        self._sha256 = hashlib.sha256()
        self._md5 = hashlib.md5(usedforsecurity=False) if with_md5 else None

    @property
    def sha256(self) -> str:
        return self._sha256.hexdigest()

    @property
    def md5(self) -> str | None:
        return None if self._md5 is None else self._md5.hexdigest()

    def advance(self, stop: int, cancelled: threading.Event) -> None:
        """Digest up to byte `stop`, unless another thread is at it already."""
        if self._lock.acquire(blocking=False):
            try:
                self._advance(stop, cancelled)
            finally:
                self._lock.release()

    def finish(self, cancelled: threading.Event) -> None:
        """Digest the rest."""
        with self._lock:
            self._advance(self._header.stamp.size, cancelled)

    def _advance(self, stop: int, cancelled: threading.Event) -> None:
        buffer = bytearray(min(_CHUNK_BYTES, max(stop - self._place, 0)))
        with open_regular(self._header.path) as file:
            while self._place < stop:
                if cancelled.is_set():
                    raise Cancelled
                chunk = memoryview(buffer)[: stop - self._place]
                try:
                    count = os.preadv(file.fileno(), [chunk], self._place)
                except OSError as error:
                    raise RefusedError(f"{self._header.path}: cannot be read: {error.strerror}; {AGAIN}") from None
                if count == 0:
                    raise RefusedError(f"{self._header.path}: ends at byte {self._place}; {AGAIN}")
                self._sha256.update(chunk[:count])
                if self._md5 is not None:
                    self._md5.update(chunk[:count])
                self._place += count


def read_checklist(path: Path) -> dict[str, str] | None:
    """MD5 by file name, of files beside it; None where there is no list."""
    if not path.exists():
        return None
    with open_regular(path) as file:
        text = file.read(_CHECKLIST_BYTES).decode("utf-8", "replace")
    lines = [_MD5_LINE.fullmatch(line.strip()) for line in text.splitlines()]
    return {line[2]: line[1].lower() for line in lines if line is not None and Path(line[2]).name == line[2]}


def md5_of(path: Path) -> str:
    """The MD5 of a file."""
    found = hashlib.md5(usedforsecurity=False)
    with open_regular(path) as file:
        for chunk in iter(lambda: file.read(_CHUNK_BYTES), b""):
            found.update(chunk)
    return found.hexdigest()
