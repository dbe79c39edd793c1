"""Where this process stands in its work, kept where its supervisor can read it whatever becomes of the process.

A rank that was killed or hangs cannot say what it was doing. So each rank writes its phase, its step and its
collectives to a small file that is mapped to memory: a few stores a collective, no system call. Where nobody
supervises it is memory of its own. The exchange writes there too, without Python (kernels/exchange.cpp).

There is one `position` a process, as there is one log: whoever does the work says so, without being told to whom.
"""

import ctypes
import mmap
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

COLLECTIVES = ("all-reduce", "all-gather", "broadcast")
# The phase of a rank that loads libraries, and has met nobody yet.
STARTING = "starting"
# The phase of a rank that has done all its work: only from there it may leave with exit code 0.
ENDING = "ending"
# Room for each text, in bytes.
_OPERATION, _PHASE, _UNIT = 32, 96, 16


class _Record(ctypes.Structure):
    """A position as it stands in memory; as Position in kernels/exchange.cpp. All zeros: nothing was written yet."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("changes", "step", "total", "collectives")),
        *((name, ctypes.c_int8) for name in ("waiting", "patient")),
        *(
            (name, ctypes.c_char * room)
            for name, room in (("operation", _OPERATION), ("phase", _PHASE), ("unit", _UNIT))
        ),
    )


SIZE = ctypes.sizeof(_Record)


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
        self._record = _Record(phase=STARTING.encode(), unit=b"step")
        # Called with phase and step at each change of either: where a drill puts its faults.
        self.listener: Callable[[str, int], None] | None = None

    @property
    def record(self) -> ctypes.Structure:
        """The position as it stands in memory, until `share` is called: for kernels that write it themselves."""
        return self._record

    def share(self, path: Path) -> None:
        """From here on write to a file, which is made. OSError where there is no room for it."""
        with path.open("wb+") as file:
            # Room for good: a full disk would end the process at the first write.
            os.posix_fallocate(file.fileno(), 0, SIZE)
            memory = mmap.mmap(file.fileno(), SIZE)
        memory[:] = bytes(self._record)
        self._record = _Record.from_buffer(memory)
        self._record.changes += 1

    def now(self) -> Position:
        return _unpack(bytes(self._record))

    def phase(self, name: str, total: int = 0, unit: str = "step", *, patient: bool = False) -> None:
        """A new part of the work begins; `total`: its steps, where they are known."""
        record = self._record
        record.step, record.total, record.waiting, record.patient = 0, total, False, patient
        record.phase, record.unit = _cut(name, _PHASE), _cut(unit, _UNIT)
        record.changes += 1
        if self.listener is not None:
            self.listener(name, 0)

    def step(self, number: int) -> None:
        """The part of the work is at this step."""
        self._record.step = number
        self._record.changes += 1
        if self.listener is not None:
            self.listener(self._record.phase.decode(errors="replace"), number)

    def tick(self) -> None:
        """Something was done that has no number."""
        self._record.changes += 1

    @contextmanager
    def patiently(self) -> Iterator[None]:
        """In the body this process may take any time: it waits for somebody who reads what it says."""
        before, self._record.patient = self._record.patient, True
        self._record.changes += 1
        try:
            yield
        finally:
            self._record.patient = before
            self._record.changes += 1

    def waits_in(self, operation: str) -> "Recorder":
        """`with position.waits_in("all-reduce"):` around what ends only when the others do their part."""
        record = self._record
        if operation in COLLECTIVES:
            record.collectives += 1
        record.operation = _cut(operation, _OPERATION)
        record.waiting = True
        record.changes += 1
        return self

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if kind is None:  # what went wrong in there stays to be read
            self._record.waiting = False
            self._record.changes += 1


def _cut(text: str, room: int) -> bytes:
    return text.encode()[:room]


def read_position(path: Path) -> Position | None:
    """What a process wrote last, alive or not; None where it has written nothing yet."""
    try:
        data = path.read_bytes()
    except OSError:
        return None
    found = _unpack(data) if len(data) == SIZE else Position()
    return found if found.changes else None


def _unpack(data: bytes) -> Position:
    record = _Record.from_buffer_copy(data)
    return Position(
        changes=record.changes,
        phase=record.phase.decode(errors="replace"),
        step=record.step,
        total=record.total,
        unit=record.unit.decode(errors="replace"),
        collectives=record.collectives,
        waiting=bool(record.waiting),
        operation=record.operation.decode(errors="replace"),
        patient=bool(record.patient),
    )


position = Recorder()
