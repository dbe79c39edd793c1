"""Asking programs and library functions that may never answer."""

import contextlib
import os
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from launcher.doctor.processes import bound_to_us

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What a program said. `code`: its exit code, None where it hangs."""

    code: int | None
    text: str

    @property
    def hangs(self) -> bool:
        return self.code is None

    @property
    def first_line(self) -> str:
        return next((line.strip() for line in self.text.splitlines() if line.strip()), "nothing")


@dataclass(frozen=True, slots=True)
class Asked:
    """A program at work; several may be asked before the first answer is waited for."""

    process: "subprocess.Popen[bytes]"
    deadline: float

    def answer(self) -> Answer:
        try:
            said, _ = self.process.communicate(timeout=max(0.0, self.deadline - time.monotonic()))
            return Answer(code=self.process.returncode, text=said.decode("utf-8", "replace"))
        except subprocess.TimeoutExpired as error:
            # Not waited for: one that is stuck in a driver does not end.
            with contextlib.suppress(OSError):
                self.process.kill()
            return Answer(code=None, text=(error.output or b"").decode("utf-8", "replace"))


def ask(command: Sequence[str], limit_s: float, env: dict[str, str] | None = None) -> Asked | None:
    """Start a program and give it `limit_s`; None where it is not there or cannot be started."""
    try:
        process = subprocess.Popen(
            command,
            env={**os.environ, "LC_ALL": "C", **(env or {})},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            preexec_fn=bound_to_us(),
        )
    except OSError:
        return None
    return Asked(process, time.monotonic() + limit_s)


class NoAnswerError(Exception):
    """A call took longer than it was given."""


def within(limit_s: float, act: Callable[[], T]) -> T:
    """What `act` returns or raises; NoAnswerError after `limit_s`. For calls without a limit of their own."""
    results: list[T] = []
    errors: list[Exception] = []

    def call() -> None:
        try:
            results.append(act())
        except Exception as error:
            errors.append(error)

    thread = threading.Thread(target=call, daemon=True)
    thread.start()
    thread.join(limit_s)
    if errors:
        raise errors[0]
    if not results:
        raise NoAnswerError
    return results[0]
