"""Where this process stands in its work, kept where its supervisor can read it whatever becomes of the process.

A rank that was killed or hangs cannot say what it was doing. So each rank writes its phase, its step and its
collectives to a small file that is mapped to memory: two stores a collective, no system call. Nothing is written
where nobody supervises.

There is one `position` a process, as there is one log: whoever does the work says so, without being told to whom.
"""

import mmap
import os
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

# Changes so far, step, steps in all, collectives so far, waits for others, may take any time.
_NUMBERS = struct.Struct("=qqqqbb")
_TEXTS = struct.Struct("=32s96s16s")
COLLECTIVES = ("all-reduce", "all-gather", "broadcast")
# The phase of a rank that loads libraries, and has met nobody yet.
STARTING = "starting"
# The phase of a rank that has done all its work: only from there it may leave with exit code 0.
ENDING = "ending"
SIZE = _NUMBERS.size + _TEXTS.size


@dataclass(frozen=True, slots=True, kw_only=True)
class Position:
    """A process's place in its work at one moment."""

    changes: int = 0
    phase: str = STARTING
    step: int = 0
    # Steps in all; 0: not known.
    total: int = 0
    unit: str = "step"
    collectives: int = 0
    # In `operation`, which ends only when others do their part.
    waiting: bool = False
    operation: str = ""
    # May take as long as it takes, as a person who is asked.
    patient: bool = False

    def __str__(self) -> str:
        """'decoding (step 214, in all-reduce number 8211)': goes behind 'while'."""
        details = []
        if self.total and self.step:
            details.append(f"{self.unit} {self.step} of {self.total}")
        elif self.total:
            details.append(f"{self.total} {self.unit}{'' if self.total == 1 else 's'}")
        elif self.step:
            details.append(f"{self.unit} {self.step}")
        if self.waiting and self.operation in COLLECTIVES:
            details.append(f"in {self.operation} number {self.collectives}")
        elif self.waiting:
            details.append(f"waiting for {self.operation}")
        return f"{self.phase} ({', '.join(details)})" if details else self.phase


class Recorder:
    """Writes this process's position. Not a collective; costs well under a microsecond a call."""

    def __init__(self) -> None:
        self._memory: bytearray | mmap.mmap = bytearray(SIZE)
        self._changes = self._step = self._total = self._collectives = 0
        self._waiting = self._patient = False
        self._texts = ("", STARTING, "step")
        # Called with phase and step at each change of either: where a drill puts its faults.
        self.listener: Callable[[str, int], None] | None = None
        self._name(*self._texts)

    def share(self, path: Path) -> None:
        """From here on write to a file, which is made. OSError where there is no room for it."""
        with path.open("wb+") as file:
            # Room for good: a full disk would end the process at the first write.
            os.posix_fallocate(file.fileno(), 0, SIZE)
            self._memory = mmap.mmap(file.fileno(), SIZE)
        self._name(*self._texts)
        self._write()

    def now(self) -> Position:
        return _unpack(bytes(self._memory[:SIZE]))

    def phase(self, name: str, total: int = 0, unit: str = "step", *, patient: bool = False) -> None:
        """A new part of the work begins; `total`: its steps, where they are known."""
        self._step, self._total, self._waiting, self._patient = 0, total, False, patient
        self._name(self._texts[0], name, unit)
        self._write()
        if self.listener is not None:
            self.listener(name, 0)

    def step(self, number: int) -> None:
        """The part of the work is at this step."""
        self._step = number
        self._write()
        if self.listener is not None:
            self.listener(self._texts[1], number)

    def tick(self) -> None:
        """Something was done that has no number."""
        self._write()

    @contextmanager
    def patiently(self) -> Iterator[None]:
        """In the body this process may take any time: it waits for somebody who reads what it says."""
        before, self._patient = self._patient, True
        self._write()
        try:
            yield
        finally:
            self._patient = before
            self._write()

    def waits_in(self, operation: str) -> "Recorder":
        """`with position.waits_in("all-reduce"):` around what ends only when the others do their part."""
        self._collectives += operation in COLLECTIVES
        self._waiting = True
        if operation != self._texts[0]:
            self._name(operation, *self._texts[1:])
        self._write()
        return self

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if kind is None:  # what went wrong in there stays to be read
            self._waiting = False
            self._write()

    def _write(self) -> None:
        self._changes += 1
        _NUMBERS.pack_into(
            self._memory,
            0,
            self._changes,
            self._step,
            self._total,
            self._collectives,
            self._waiting,
            self._patient,
        )

    def _name(self, operation: str, phase: str, unit: str) -> None:
        self._texts = (operation, phase, unit)
        _TEXTS.pack_into(self._memory, _NUMBERS.size, *(text.encode() for text in self._texts))


def read_position(path: Path) -> Position | None:
    """What a process wrote last, alive or not; None where it has written nothing yet."""
    try:
        data = path.read_bytes()
    except OSError:
        return None
    found = _unpack(data) if len(data) == SIZE else Position()
    return found if found.changes else None


def _unpack(data: bytes) -> Position:
    changes, step, total, collectives, waiting, patient = _NUMBERS.unpack_from(data)
    operation, phase, unit = (
        text.rstrip(b"\0").decode(errors="replace") for text in _TEXTS.unpack_from(data, _NUMBERS.size)
    )
    return Position(
        changes=changes,
        phase=phase,
        step=step,
        total=total,
        unit=unit,
        collectives=collectives,
        waiting=bool(waiting),
        operation=operation,
        patient=bool(patient),
    )


position = Recorder()
