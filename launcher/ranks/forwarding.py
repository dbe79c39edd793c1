"""What the ranks say: all of it to their logs, and to the terminal what a person is to read."""

import contextlib
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import IO

from launcher.console import SPEAKS_FOR_ITSELF

_LAST_BYTES = 2**14
# What torch's C++ logs: '[W1120 16:40:46.1 ...]', '[rank0]:[E1120 ...', and the frames behind it.
_OF_LIBRARIES = rb"\[(rank\d+\]:\[)?[IWEF]\d{4} |Exception raised from |frame #\d+: |C\+\+ CapturedTraceback"
# How a line of rank 0 begins that is not for the terminal.
FOR_THE_LOG = "[log] "
_LOG_ONLY = re.compile(re.escape(FOR_THE_LOG.encode()) + b"|" + _OF_LIBRARIES)


def to_terminal(line: bytes) -> None:
    """A line on stderr, in one write."""
    os.write(2, line)


def forward(source: IO[bytes], log: Path, speaks: bool, show: Callable[[bytes], None] = to_terminal) -> None:
    """Copy a rank's lines to its log, and `show` those that are for the terminal; a whole line at a time.

    `speaks`: all is for the terminal but what is for those who mend the program.
    """
    with contextlib.ExitStack() as stack:
        # A full disk must not stop a rank: it would wait for somebody to read what it says. Nor must a terminal that
        # has gone.
        file: IO[bytes] | None = None
        try:
            file = stack.enter_context(log.open("wb", buffering=0))
        except OSError as error:
            _note_lost(log, error, show)
        for line in source:
            try:
                if file is not None:
                    file.write(line)
            except OSError as error:
                file = None
                _note_lost(log, error, show)
            if SPEAKS_FOR_ITSELF.match(line) or (speaks and not _LOG_ONLY.match(line)):
                with contextlib.suppress(OSError):
                    show(line)


def _note_lost(log: Path, error: OSError, show: Callable[[bytes], None]) -> None:
    with contextlib.suppress(OSError):
        show(f"shardrun: note: the log {log} is not whole: {error.strerror}\n".encode())


def last_words(log: Path) -> str:
    """The end of a rank's log."""
    with contextlib.suppress(OSError):
        return log.read_bytes()[-_LAST_BYTES:].decode(errors="replace")
    return ""
