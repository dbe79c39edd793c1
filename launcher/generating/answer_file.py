"""A file of answers, one JSON object a line, that an interrupted run can be gone on with. Without torch.

Beside an unfinished FILE stands FILE.run, which says with what it was begun; it goes when FILE is whole.
"""

import contextlib
import fcntl
import json
import logging
import os
import stat
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from parallel.errors import RefusedError
from parallel.position import position

log = logging.getLogger("shardrun")
# A run that was killed lets go of its file when its last process has gone.
_LOCK_PATIENCE_S = 2.0
_LOCK_POLL_S = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """What decides the answers of a run, in values that JSON keeps."""

    # By name, each to be the same when a run is gone on with.
    settings: Mapping[str, object]
    # Digests by what it is where they differ: "another checkpoint".
    digests: Mapping[str, str]
    # What numbers may be rounded differently by; a change is noted.
    places: Mapping[str, object]


def check_output(path: Path, resume: bool) -> None:
    """Refuse, before any process is started, a FILE that `AnswerFile` would refuse by what can be seen of it."""
    try:
        status = path.stat()
    except OSError:
        if not path.parent.is_dir():
            raise _no_folder(path) from None
        return
    _check_kind(path, status, resume)


class AnswerFile:
    """FILE, open and locked for one run. `begin` comes first, and `close` last."""

    def __init__(self, path: Path, resume: bool) -> None:
        self.path = path
        self.beside = path.with_name(f"{path.name}.run")
        self._made = not os.path.lexists(path)
        self._file = _open_locked(path)
        status = os.fstat(self._file)
        try:
            _check_kind(path, status, resume)
        except RefusedError:
            os.close(self._file)
            raise
        # A device, such as /dev/null, keeps nothing that could be gone on with.
        self._keeps = stat.S_ISREG(status.st_mode)
        self._size = status.st_size if self._keeps else 0

    def begin(self, origin: Origin, beginnings: Iterator[Sequence[str]], requests: int) -> int:
        """Find the first request without a whole answer, and cut off what stands behind the whole answers.

        `beginnings`: those of the lines that each of the `requests` has. RefusedError where FILE holds anything else,
        or was begun with something else.
        """
        if self._size == 0:
            self._put_beside(origin)
            return 0
        begun = self._beside_of_before()
        if begun is not None:
            self._compare_settings(begun, origin)
        done, size = self._whole_answers(beginnings)
        if begun is not None:
            self._compare_rest(begun, origin)
        elif done < requests or size < self._size:
            raise RefusedError(
                f"--output {self.path}: holds {done} of {requests} answers, but {self.beside.name}, which says with "
                "what settings they were made, is not beside it; give another name"
            )
        if size < self._size:
            os.ftruncate(self._file, size)
            self._size = size
        os.lseek(self._file, size, os.SEEK_SET)
        known = "" if done < requests else "; with what settings is no longer known"
        held = done if done < requests else "all"
        log.warning("note: %s holds %s of %d answers already%s", self.path, held, requests, known)
        return done

    def write(self, lines: str) -> None:
        """Add whole lines, and bring them to the disk. RefusedError where it does not take them."""
        # Half a surrogate may stand where the user put it, in a dialog.
        data = memoryview(lines.encode("utf-8", "replace"))
        size = self._size + len(data)
        try:
            while data:
                data = data[os.write(self._file, data) :]
            if self._keeps:
                os.fsync(self._file)
                if os.fstat(self._file).st_nlink == 0:
                    raise RefusedError(
                        f"--output {self.path}: was removed while it was being written; start again, or give another "
                        "name"
                    )
        except OSError as error:
            raise RefusedError(
                f"--output {self.path}: the answers cannot be written: {error.strerror}; mend that and go on with "
                "--resume"
            ) from None
        self._size = size

    def finish(self) -> None:
        """All answers are there."""
        with contextlib.suppress(OSError):
            self.beside.unlink(missing_ok=True)

    def close(self) -> None:
        """Let go of the file. A line that was not written to its end is cut off; a file without any is removed."""
        with contextlib.suppress(OSError):
            if self._keeps:
                self._cut_off_part()
            if self._keeps and self._size == 0:
                self.finish()
                if self._made:
                    self.path.unlink()
        os.close(self._file)

    def _cut_off_part(self) -> None:
        size = os.fstat(self._file).st_size
        # A signal or a full disk may have ended the last write anywhere.
        last = os.pread(self._file, size - self._size, self._size)
        self._size += last.rfind(b"\n") + 1
        if self._size < size:
            os.ftruncate(self._file, self._size)

    def _put_beside(self, origin: Origin) -> None:
        if not self._keeps:
            return
        partial = self.beside.with_name(f".{self.beside.name}.partial")
        try:
            with partial.open("w", encoding="utf-8") as file:
                json.dump(asdict(origin), file)
                file.flush()
                os.fsync(file.fileno())
            partial.replace(self.beside)
        except OSError as error:
            with contextlib.suppress(OSError):
                partial.unlink(missing_ok=True)
            raise RefusedError(f"--output {self.path}: {self.beside} cannot be written: {error.strerror}") from None

    def _beside_of_before(self) -> Origin | None:
        try:
            return Origin(**json.loads(self.beside.read_text(encoding="utf-8")))
        except FileNotFoundError:
            return None
        except (OSError, ValueError, TypeError):
            raise RefusedError(
                f"--output {self.path}: {self.beside} cannot be read, which says with what settings it was begun; "
                "give another name"
            ) from None

    def _compare_settings(self, begun: Origin, origin: Origin) -> None:
        for name in sorted({*begun.settings, *origin.settings}):
            before, now = (json.dumps(one.settings.get(name), ensure_ascii=False) for one in (begun, origin))
            if before != now:
                raise RefusedError(
                    f"--output {self.path}: was begun with {name} {before}, and this run has {now}; go on with the "
                    "same, or give another name"
                )

    def _compare_rest(self, begun: Origin, origin: Origin) -> None:
        for what, digest in origin.digests.items():
            if begun.digests.get(what) != digest:
                raise RefusedError(
                    f"--output {self.path}: was begun with {what}; go on with the same, or give another name"
                )
        for name, value in origin.places.items():
            if (before := begun.places.get(name)) != value:
                log.warning(
                    "note: %s was begun with %s %s, and this run has %s: numbers may be rounded differently",
                    self.path,
                    name,
                    before,
                    value,
                )

    def _whole_answers(self, beginnings: Iterator[Sequence[str]]) -> tuple[int, int]:
        """How many requests are answered, and where in the file their lines end."""
        done = size = place = number = 0
        with open(self._file, "rb", closefd=False) as file:
            for wanted in beginnings:
                position.tick()
                for beginning in wanted:
                    line, number = file.readline(), number + 1
                    self._check_line(line, number, beginning.encode("utf-8", "replace"))
                    if not line.endswith(b"\n"):
                        # Here the file ends, or the run was ended while it wrote.
                        return done, size
                    place += len(line)
                done, size = done + 1, place
            if file.readline():
                raise RefusedError(
                    f"--output {self.path}: holds more than the answers to the {done} requests of this run; give the "
                    "same requests as before, or another name"
                )
        return done, size

    def _check_line(self, line: bytes, number: int, beginning: bytes) -> None:
        shorter = min(len(line), len(beginning))
        if line[:shorter] != beginning[:shorter]:
            what = "answers another request than this run's" if line.startswith(b'{"index": ') else "is no answer"
            raise RefusedError(
                f"--output {self.path}: line {number} {what}; give the same requests as before, or another name"
            )


def _open_locked(path: Path) -> int:
    """A file descriptor of FILE that no other run has; FILE is made where it is not there."""
    deadline = time.monotonic() + _LOCK_PATIENCE_S
    while True:
        try:
            file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        except FileNotFoundError:
            raise _no_folder(path) from None
        except OSError as error:
            why = "is a folder; wanted a file" if path.is_dir() else f"cannot be written: {error.strerror}"
            raise RefusedError(f"--output {path}: {why}") from None
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Who held it before may have removed it meanwhile.
            if path.exists() and os.path.samestat(os.fstat(file), path.stat()):
                return file
        except BlockingIOError:
            if time.monotonic() > deadline:
                os.close(file)
                raise RefusedError(
                    f"--output {path}: is being written by another run; wait for its end, or give another name"
                ) from None
        except OSError:
            return file  # some network file systems have no locks
        os.close(file)
        time.sleep(_LOCK_POLL_S)


def _check_kind(path: Path, status: os.stat_result, resume: bool) -> None:
    if stat.S_ISDIR(status.st_mode):
        raise RefusedError(f"--output {path}: is a folder; wanted a file")
    if stat.S_ISCHR(status.st_mode):
        return
    if not stat.S_ISREG(status.st_mode):
        raise RefusedError(
            f"--output {path}: is a pipe, socket or disk; wanted a file (--json without --output prints the same lines)"
        )
    if status.st_size and not resume:
        raise RefusedError(f"--output {path}: holds something already; go on with it (--resume), or give another name")


def _no_folder(path: Path) -> RefusedError:
    return RefusedError(f"--output {path}: the folder {path.parent} does not exist; make it, or give another name")
