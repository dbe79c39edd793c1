"""What reaches the terminal: results on stdout, everything else on stderr, whole lines at a time."""

import contextlib
import logging
import os
import re
import sys
import tempfile
import time
from pathlib import Path

from parallel.errors import RefusedError
from parallel.position import position


def say(text: str) -> None:
    """A line on stderr, in one write, so that two processes' lines do not mix."""
    # Past sys.stderr: a terminal that has gone must not change the exit code, now or when its buffer is flushed.
    with contextlib.suppress(OSError):
        os.write(2, f"shardrun: {text}\n".encode("utf-8", "replace"))


def print_result(text: str) -> None:
    """Results, at once, in UTF-8 whatever the locale. RefusedError where they cannot be written."""
    if sys.stdout is None:
        raise RefusedError("stdout is closed, and results are printed there; give it a file or a pipe, or use --output")
    try:
        with position.patiently():
            sys.stdout.buffer.write(text.encode("utf-8", "replace"))
            sys.stdout.buffer.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        raise RefusedError(
            f"the results cannot be written to stdout: {error.strerror}; give them another place"
        ) from None


def leave_stdout() -> None:
    """Let go of a stdout whose reader has gone, so that the interpreter's last flush does not fail."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


# How a line of a rank other than 0 begins that is for the terminal too. The launcher passes it on.
SPEAKS_FOR_ITSELF = re.compile(rb"shardrun: rank \d+: ")


class _LineFormatter(logging.Formatter):
    def __init__(self, rank: int) -> None:
        super().__init__()
        self.rank = rank

    def format(self, record: logging.LogRecord) -> str:
        own = self.rank and record.levelno >= logging.WARNING
        return f"shardrun: {f'rank {self.rank}: ' if own else ''}{record.getMessage()}"


def log_to_stderr(rank: int, to_terminal: bool = True, log_file: Path | None = None) -> None:
    """Send our log to stderr, and all of it to `log_file` where there is one.

    On a terminal rank 0 says all and the others their warnings; where stderr is a rank's own log, everything.
    """
    console = logging.StreamHandler(sys.stderr)
    console.setFormatter(_LineFormatter(rank))
    console.setLevel(logging.DEBUG if not to_terminal else logging.INFO if rank == 0 else logging.WARNING)
    logger = logging.getLogger("shardrun")
    logger.handlers = [console]
    logger.setLevel(logging.DEBUG)
    logger.propagate = False
    if log_file is not None:
        file = logging.FileHandler(log_file, mode="w", encoding="utf-8")
        file.setFormatter(logging.Formatter(f"%(asctime)s rank {rank} %(levelname)s %(message)s"))
        logger.addHandler(file)


def make_log_dir(log_dir: str) -> Path:
    """The folder for logs, made where it is not there."""
    try:
        Path(log_dir).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=log_dir):
            pass
    except OSError as error:
        raise RefusedError(f"--log_dir {log_dir}: cannot be written to: {error.strerror}") from None
    return Path(log_dir)


class ProgressLine:
    """How far a long work is: a line a second at most, and none for what is over in the first seconds."""

    PATIENCE_S = 2.0

    def __init__(self, doing: str, unit: str, scale: float = 1.0, enabled: bool = True) -> None:
        self.doing, self.unit, self.scale, self.enabled = doing, unit, scale, enabled
        self.started = time.monotonic()
        self._next_s = self.PATIENCE_S

    def __call__(self, done: int, total: int, more: str = "") -> None:
        passed_s = time.monotonic() - self.started
        if not self.enabled or done >= total or passed_s < self._next_s:
            return
        self._next_s = passed_s + 1.0
        rate = done / passed_s
        left_s = (total - done) / rate if rate else 0.0
        say(
            f"{self.doing}: {_figures(done / self.scale)} of {_figures(total / self.scale)} {self.unit} "
            f"({100 * done / max(total, 1):.0f} %), {_figures(rate / self.scale, 3)} {self.unit}/s, "
            f"{more}{', ' if more else ''}{left_s:.0f} s left"
        )


def _figures(value: float, digits: int = 4) -> str:
    """So many figures, or all before the point: 13478 and not 1.348e+04."""
    return f"{value:.{digits}g}" if value < 10 ** (digits - 1) else f"{value:.0f}"
