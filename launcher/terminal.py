"""Where a chat's messages come from: a person at a terminal, or a file or a pipe. Without torch."""

import contextlib
import fcntl
import math
import os
import signal
import socket
import sys
import termios
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import TextIOWrapper
from typing import TextIO

from launcher.guard import stop_signals
from parallel.errors import RefusedError

PROMPT = "> "
# Two Ctrl-C within this while an answer comes end it all.
QUICK_S = 1.0
_LONGEST_LINE_BYTES = 2**24
# For our supervisor to show what it has taken from our stderr, and at most for it to take it.
_SHOWING_S, _TAKING_S = 0.02, 1.0


class Terminal:
    """Messages, a line each. Used on rank 0.

    At a terminal a prompt is shown, lines can be edited and Ctrl-C drops one; lines of anything else are read as
    they are.
    """

    def __init__(self, stdin: TextIO | None, forwarded: bool = False) -> None:
        """`forwarded`: somebody passes our stderr on to the terminal. RefusedError where there is no `stdin`."""
        if stdin is None:
            raise RefusedError(
                "standard input is closed, and a chat reads its messages there; give it a terminal, a file or a pipe, "
                "or use --dialogs"
            )
        self.stdin = stdin
        self.forwarded = forwarded
        self.by_person = stdin.isatty()
        # Whether Ctrl-C came since the last line was read.
        self.interrupted = False
        self._reading = False
        self._answering = False
        # When Ctrl-C last came during the answer.
        self._pressed_s = -math.inf
        self._lines = 0
        self._edited = self.by_person and sys.stdout.isatty() and _can_edit()
        if self._edited and isinstance(stdin, TextIOWrapper):
            stdin.reconfigure(encoding="utf-8", errors="surrogateescape")

    def read(self) -> str:
        """The next line that is not blank; empty at the end of the input. RefusedError where it is no text."""
        self._answering = False
        while (line := self._next()) is not None:
            if line.strip():
                self._pressed_s, self._answering = -math.inf, True
                return line
        return ""

    @contextmanager
    def taking_ctrl_c(self, end: Callable[[], None]) -> Iterator[None]:
        """In the body Ctrl-C drops the line that is typed, or sets `interrupted`; the second of two quick ones calls
        `end`, in a thread of its own, so that it comes about whatever this one hangs in."""
        if signal.SIGINT not in stop_signals():
            yield
            return
        before = signal.signal(signal.SIGINT, self._take_ctrl_c)
        receiver, sender = socket.socketpair()
        sender.setblocking(False)
        # Python runs handlers between two steps of the main thread, which may never come to the next.
        signal.set_wakeup_fd(sender.fileno(), warn_on_full_buffer=False)
        watcher = threading.Thread(target=self._watch, args=(receiver, end), daemon=True)
        watcher.start()
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)
            signal.set_wakeup_fd(-1)
            sender.close()
            watcher.join()
            receiver.close()

    def _take_ctrl_c(self, _number: int, _frame: object) -> None:
        if self._reading:
            self._reading = False
            raise KeyboardInterrupt
        self.interrupted = True

    def _watch(self, receiver: socket.socket, end: Callable[[], None]) -> None:
        while number := receiver.recv(1):
            if number[0] != signal.SIGINT or not self._answering:
                continue
            if time.monotonic() - self._pressed_s < QUICK_S:
                end()
            self._pressed_s = time.monotonic()

    def _next(self) -> str | None:
        """A line without its end; None at the end of the input."""
        try:
            return self._ask() if self.by_person else self._take()
        except OSError as error:
            raise RefusedError(f"standard input cannot be read: {error.strerror}") from None

    def _ask(self) -> str | None:
        """A line that a person types."""
        if self.forwarded:
            _let_forward()
        try:
            self.interrupted = False
            self._reading = True
            line = self._typed()
            self._reading = False
        except KeyboardInterrupt:
            _show("\nshardrun: Ctrl-D ends the chat\n")
            return ""
        finally:
            self._reading = False
        if line is None:
            _show("\n")
        return line

    def _typed(self) -> str | None:
        """What was typed. Bytes that are no text become half surrogates, so that this message alone is refused."""
        if self._edited:
            try:
                return input(PROMPT)
            except EOFError:
                return None
        _show(PROMPT)
        line = self.stdin.buffer.readline()
        return line.decode("utf-8", "surrogateescape").rstrip("\r\n") if line else None

    def _take(self) -> str | None:
        """A line of a file or a pipe."""
        line, self._lines = self.stdin.buffer.readline(_LONGEST_LINE_BYTES + 1), self._lines + 1
        where = f"standard input, line {self._lines}"
        if len(line) > _LONGEST_LINE_BYTES:
            raise RefusedError(f"{where}: is longer than {_LONGEST_LINE_BYTES} bytes; each line is a message")
        try:
            text = line.decode("utf-8-sig" if self._lines == 1 else "utf-8")
        except UnicodeDecodeError as error:
            raise RefusedError(f"{where}: is not UTF-8 text (byte {error.start} of the line)") from None
        return text.rstrip("\r\n") if line else None


def _can_edit() -> bool:
    """Whether lines can be edited, with Python's readline: some builds have none. Importing it changes `input`."""
    try:
        import readline  # noqa: F401  # it touches the terminal, so nothing but a chat at one loads it
    except ImportError:
        return False
    return True


def _let_forward() -> None:
    """Let what we said on stderr be passed on: it should not come behind the prompt."""
    deadline = time.monotonic() + _TAKING_S
    with contextlib.suppress(OSError):
        while any(fcntl.ioctl(2, termios.FIONREAD, bytes(4))) and time.monotonic() < deadline:
            time.sleep(_SHOWING_S / 4)
        time.sleep(_SHOWING_S)


def _show(text: str) -> None:
    """Show what is no result, on the terminal itself: our stderr may be passed on by lines, later."""
    with contextlib.suppress(OSError):
        try:
            device = os.open(os.ctermid(), os.O_WRONLY | os.O_NOCTTY)
        except OSError:  # torchrun's ranks have no terminal of their own
            device = os.dup(sys.stdout.fileno() if sys.stdout.isatty() else 2)
        with os.fdopen(device, "wb") as terminal:
            terminal.write(text.encode())


@contextmanager
def terminal_kept() -> Iterator[None]:
    """Put the terminal's settings back at the end: a process that is killed while it edits a line leaves no echo."""
    try:
        before = termios.tcgetattr(0)
    except (OSError, termios.error):  # no terminal
        yield
        return
    try:
        yield
    finally:
        with contextlib.suppress(OSError, termios.error):
            # From the background the kernel would stop us for it.
            if os.tcgetpgrp(0) == os.getpgrp():
                termios.tcsetattr(0, termios.TCSANOW, before)
