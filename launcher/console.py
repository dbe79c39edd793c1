"""What reaches the terminal: results on stdout, everything else on stderr, whole lines at a time."""

import logging
import os
import sys
import time


def say(text: str) -> None:
    """A line on stderr, in one write, so that two processes' lines do not mix."""
    sys.stderr.write(f"shardrun: {text}\n")
    sys.stderr.flush()


def print_result(text: str) -> None:
    """Results, at once."""
    sys.stdout.write(text)
    sys.stdout.flush()


def leave_stdout() -> None:
    """Let go of a stdout whose reader has gone, so that the interpreter's last flush does not fail."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


class _LineFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return f"shardrun: {record.getMessage()}"


def log_to_stderr(rank: int) -> None:
    """Send our log to stderr: rank 0's all, the others' errors."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_LineFormatter())
    logger = logging.getLogger("shardrun")
    logger.handlers = [handler]
    logger.setLevel(logging.INFO if rank == 0 else logging.ERROR)
    logger.propagate = False


class ProgressLine:
    """How far a long work is: a line a second at most, and none for what is over in the first seconds."""

    PATIENCE_S = 2.0

    def __init__(self, doing: str, unit: str, scale: float = 1.0, enabled: bool = True) -> None:
        self.doing, self.unit, self.scale, self.enabled = doing, unit, scale, enabled
        self.started = time.monotonic()
        self._next_s = self.PATIENCE_S

    def __call__(self, done: int, total: int) -> None:
        passed_s = time.monotonic() - self.started
        if not self.enabled or passed_s < self._next_s:
            return
        self._next_s = passed_s + 1.0
        rate = done / passed_s
        left_s = (total - done) / rate if rate else 0.0
        say(
            f"{self.doing}: {done / self.scale:.4g} of {total / self.scale:.4g} {self.unit} "
            f"({100 * done / max(total, 1):.0f} %), {rate / self.scale:.3g} {self.unit}/s, {left_s:.0f} s left"
        )
