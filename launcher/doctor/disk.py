"""Check: how fast the checkpoint's files are read, or those of the folder for temporary ones."""

import fcntl
import mmap
import os
import stat
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from launcher.amounts import human
from launcher.doctor.checks import Finding, Findings, Question, bad, good, note, trying

_READ_BYTES = 256 * 2**20
_READ_S = 3.0
_WRITE_BYTES = 64 * 2**20
_CHUNK_BYTES = 4 * 2**20
# Below this the first chunk says nothing about others, unless it was slow itself.
_ENOUGH_BYTES = 16 * 2**20
_SLOW_START_S = 1.0
# A model of 13.5 GB takes more than ten minutes.
_SLOW = 20e6
_NO_ANSWER = "the file system does not answer: see `mount` and `dmesg`; mount it again, or copy the files elsewhere"


@dataclass(frozen=True, slots=True, kw_only=True)
class Rate:
    """What was read in how long. `direct`: from the disk for sure, and not from memory."""

    read_bytes: int
    seconds: float
    direct: bool

    @property
    def per_s(self) -> float:
        return self.read_bytes / max(self.seconds, 1e-6)


def look(question: Question) -> Findings:
    if question.folder is None:
        yield trying("disk", "writing and reading a file for temporary ones", "set TMPDIR to a folder on a local disk")
        yield _temporary()
        return
    folder = Path(question.folder)
    yield trying("disk", f"looking into {folder}", _NO_ANSWER)
    try:
        files = regular_files(folder)
        kind = mount_kind(Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="replace"), folder.resolve())
    except OSError as error:
        yield bad("disk", f"{folder} cannot be looked into: {error.strerror}", "correct the path")
        return
    if not files:
        yield note("disk", f"{folder} holds no file to read")
        return
    largest = max(files, key=lambda path: files[path])
    yield trying("disk", f"reading {largest} ({kind})", _NO_ANSWER)
    yield _reading(largest, kind, sum(files.values()))


def regular_files(folder: Path) -> dict[Path, int]:
    """Plain files and their sizes; a pipe would be waited for without end. `folder` may be such a file itself."""
    paths = list(folder.iterdir()) if folder.is_dir() else [folder]
    sizes: dict[Path, int] = {}
    for path in paths:
        try:
            status = path.stat()
        except OSError:
            continue  # a link to nothing: the check of the checkpoint says so
        if stat.S_ISREG(status.st_mode):
            sizes[path] = status.st_size
    if not sizes and not folder.is_dir():
        folder.stat()
    return sizes


def mount_kind(mounts: str, path: Path) -> str:
    """The kind of file system below `path`, of /proc/self/mountinfo: ext4, nfs4, overlay."""
    found = ("", "unknown")
    for line in mounts.splitlines():
        fields, _, kind = line.partition(" - ")
        columns = fields.split()
        if len(columns) > 4 and kind and path.is_relative_to(columns[4]) and len(columns[4]) >= len(found[0]):
            found = (columns[4], kind.split()[0])
    return found[1]


def _reading(path: Path, kind: str, total: int) -> Finding:
    try:
        with path.open("rb", buffering=0) as file:
            rate = measure(file)
    except OSError as error:
        return bad("disk", f"{path} cannot be read: {error.strerror}", "see `dmesg` for errors of the disk")
    return rated(rate, f"{path.name} on {kind}", total)


def measure(file: IO[bytes]) -> Rate:
    """Read from the start, past the system's memory of files where that can be done."""
    direct = _go_direct(file)
    if not direct and hasattr(os, "posix_fadvise"):
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    done, started = 0, time.monotonic()
    # Anonymous memory starts at a page: reading past the system's memory wants that.
    with mmap.mmap(-1, _CHUNK_BYTES) as chunk:
        while done < _READ_BYTES and time.monotonic() - started < _READ_S:
            count = os.preadv(file.fileno(), [chunk], done)
            done += count
            if count < _CHUNK_BYTES:
                break
    return Rate(read_bytes=done, seconds=time.monotonic() - started, direct=direct)


def _go_direct(file: IO[bytes]) -> bool:
    """Ask for reads past the system's memory; not every file system has them."""
    try:
        flags = fcntl.fcntl(file.fileno(), fcntl.F_GETFL)
        fcntl.fcntl(file.fileno(), fcntl.F_SETFL, flags | os.O_DIRECT)
        os.preadv(file.fileno(), [mmap.mmap(-1, mmap.PAGESIZE)], 0)
    except (OSError, AttributeError):
        return False
    return True


def rated(rate: Rate, what: str, total: int) -> Finding:
    """The rate, and how long `total` bytes take at it."""
    source = "from the disk" if rate.direct else "perhaps from the system's memory of files"
    if rate.read_bytes < _ENOUGH_BYTES and rate.seconds < _SLOW_START_S:
        return good("disk", f"{what}: {human(rate.read_bytes)} read in {rate.seconds * 1e3:.0f} ms, {source}")
    found = f"{what}: {human(rate.per_s)}/s, {human(rate.read_bytes)} read {source}"
    if total:
        found += f"; {human(total)} take {_span(total / rate.per_s)}"
    if rate.per_s < _SLOW:
        return bad("disk", found, "copy the checkpoint to a local or faster disk first")
    return good("disk", found)


def _span(seconds: float) -> str:
    return f"{seconds / 60:.0f} min" if seconds >= 120 else f"{seconds:.2g} s"


def _temporary() -> Finding:
    try:
        with tempfile.TemporaryFile(buffering=0) as file:
            started = time.monotonic()
            block = os.urandom(2**20)
            for _ in range(_WRITE_BYTES // len(block)):
                file.write(block)
            os.fsync(file.fileno())
            written_s = time.monotonic() - started
            rate = measure(file)
    except OSError as error:
        return bad(
            "disk", f"{human(_WRITE_BYTES)} cannot be written: {error.strerror}", "free some room, or set TMPDIR"
        )
    kind = mount_kind(
        Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="replace"),
        Path(tempfile.gettempdir()).resolve(),
    )
    return rated(rate, f"{tempfile.gettempdir()} on {kind} (written at {human(_WRITE_BYTES / written_s)}/s)", 0)
