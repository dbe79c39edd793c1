"""Faults on purpose, for drills: `--inject kill:rank=1,step=5`.

A fault waits at a phase and a step of a rank (parallel/position.py tells where it is) and then does what real ones
do. Nothing is in the way where none is asked for.
"""

import logging
import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

from launcher.settings.schema import nearest
from parallel.errors import RankFailedError, RefusedError, one_of
from parallel.position import position

if TYPE_CHECKING:
    from model.llama import Llama

log = logging.getLogger("shardrun")

KINDS = ("kill", "hang", "stop", "slow", "raise", "exit", "nan", "oom")
# Where a fault can wait; a phase that begins with the word counts.
PHASES = (
    "meeting",
    "making",
    "choosing",
    "comparing",
    "loading",
    "checking",
    "quantising",
    "prefilling",
    "decoding",
    "writing",
)
_NEVER_S = 10**9


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """One fault: what, on which rank, and when."""

    kind: str
    rank: int = 0
    phase: str = "decoding"
    step: int = 1
    # Of `slow` at each step from there on; of `hang` in all.
    seconds: float = 0.0
    # In which attempt, where a run may be started again (--max_restarts).
    attempt: int = 0

    def __str__(self) -> str:
        return f"{self.kind}:rank={self.rank},phase={self.phase},step={self.step}"

    def due(self, phase: str, step: int) -> bool:
        here = phase.startswith(self.phase)
        return here and (step >= self.step if self.kind == "slow" else step == self.step)


def parse_faults(text: str | None) -> list[Fault]:
    """The faults of `KIND[:key=value,...][;KIND...]`. RefusedError says what does not fit."""
    return [] if text is None else [_parse(part.strip()) for part in text.split(";")]


def _parse(text: str) -> Fault:
    kind, _, rest = text.partition(":")
    if kind not in KINDS:
        raise RefusedError(f"inject is {text!r}; wanted {one_of(list(KINDS))}, as kill:rank=1,step=5")
    given: dict[str, str] = {}
    known = [field.name for field in fields(Fault) if field.name != "kind"]
    for item in filter(None, rest.split(",")):
        key, equals, value = (word.strip() for word in item.partition("="))
        if not equals:
            raise RefusedError(f"inject is {text!r}: {item!r} is not KEY=VALUE")
        if key not in known:
            raise RefusedError(f"inject is {text!r}: {key!r} is not a key of it{nearest(key, known)}")
        given[key] = value
    phase = given.get("phase", "decoding")
    # Before there is a model nothing of it can be spoilt.
    phases = ("prefilling", "decoding") if kind == "nan" else PHASES
    if phase not in phases:
        raise RefusedError(f"inject is {text!r}: phase is {phase!r}; wanted {one_of(list(phases))}")
    # Only the steps of some phases have numbers; elsewhere a fault comes as the phase begins.
    usual = "1" if phase in ("decoding", "loading", "quantising") else "0"
    return Fault(
        kind=kind,
        rank=_whole(text, "rank", given.get("rank", "0")),
        phase=phase,
        step=_whole(text, "step", given.get("step", usual)),
        seconds=_seconds(text, given.get("seconds", "0.1" if kind == "slow" else str(_NEVER_S))),
        attempt=_whole(text, "attempt", given.get("attempt", "0")),
    )


def check_faults(faults: list[Fault], ranks: int) -> None:
    """RefusedError where a fault is for a rank that there will not be: the drill would show nothing."""
    for fault in faults:
        if fault.rank >= ranks:
            raise RefusedError(f"inject is for rank {fault.rank} but the run has {ranks}, counted from 0")


def _whole(text: str, key: str, value: str) -> int:
    if not value.isdecimal():
        raise RefusedError(f"inject is {text!r}: {key} is {value!r}; wanted a whole number, 0 or more")
    return int(value)


def _seconds(text: str, value: str) -> float:
    try:
        found = float(value)
    except ValueError:
        found = -1.0
    if not 0 < found <= _NEVER_S:
        raise RefusedError(f"inject is {text!r}: seconds is {value!r}; wanted a number above 0")
    return found


class Injector:
    """Lies in wait in one rank."""

    def __init__(self, faults: list[Fault], rank: int, attempt: int) -> None:
        self.faults = [fault for fault in faults if (fault.rank, fault.attempt) == (rank, attempt)]
        self._come = set[Fault]()
        # What `nan` spoils, once it is there.
        self.llama: Llama | None = None
        if self.faults:
            position.listener = self._look

    def _look(self, phase: str, step: int) -> None:
        for fault in self.faults:
            if fault.due(phase, step):
                if fault not in self._come:
                    self._come.add(fault)
                    log.warning("inject: %s comes now, while %s", fault.kind, position.now())
                _ACTIONS[fault.kind](self, fault)

    def end(self) -> None:
        """The work is done: say which faults never came."""
        for fault in self.faults:
            if fault not in self._come:
                log.warning("note: inject: %s never came: the work was done before", fault)

    def spoil(self) -> None:
        """Make a weight of this rank not a number."""
        import torch  # a rank has it; the launcher, which checks what is asked for, has not

        if self.llama is not None:
            weight = self.llama.model.norm.weight
            # In a place of its own: the file that it may be mapped from is not ours to write to.
            weight.data = torch.full_like(weight.data, float("nan"))


def _raise(_injector: Injector, fault: Fault) -> None:
    raise RankFailedError(f"rank {fault.rank} failed while {position.now()}: it was asked to (--inject raise)")


def _exhaust(_injector: Injector, _fault: Fault) -> None:
    """What the allocator says when there is no memory left, without using up that of others."""
    import torch

    torch.empty(2**56, dtype=torch.uint8, device="cuda" if torch.cuda.is_available() else "cpu")


_ACTIONS: dict[str, Callable[[Injector, Fault], None]] = {
    "kill": lambda _, __: os.kill(os.getpid(), signal.SIGKILL),
    "hang": lambda _, fault: time.sleep(fault.seconds),
    "stop": lambda _, __: os.kill(os.getpid(), signal.SIGSTOP),
    "slow": lambda _, fault: time.sleep(fault.seconds),
    "raise": _raise,
    "exit": lambda _, __: os._exit(0),
    "nan": lambda injector, _: injector.spoil(),
    "oom": _exhaust,
}
