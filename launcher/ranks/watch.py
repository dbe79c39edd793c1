"""Who hangs: the rank that does nothing while others wait for it, not the one that waits.

Every rank writes down its position (parallel/position.py). The watch looks at them now and then, and counts the
time in which it has seen no change. It counts by its own looks, so that a launcher that was itself stopped (Ctrl-Z,
a suspended laptop) blames nobody.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from parallel.position import STARTING, Position

_STOPPED = ("T", "t")
_AFTER_COLLECTIVES_S = 1.0
# For the interpreter and torch to be loaded.
_STARTING_S = 300.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """A living rank at one look."""

    position: Position
    # The kernel's letter for its state, where it is known.
    state: str = ""

    @property
    def stopped(self) -> bool:
        return self.state in _STOPPED


@dataclass(frozen=True, slots=True, kw_only=True)
class Hang:
    """Ranks that hang, and one that waits for them (None: nobody does)."""

    ranks: tuple[int, ...]
    silent_s: float
    waiting: int | None


class Watch:
    """Looks at the ranks of a run. `heartbeat_s`: how long a rank may keep others waiting without a sign (0: for
    ever); `timeout_s`: how long all of them may do nothing though nobody is known to wait for another;
    `longest_look_s`: a longer gap between two looks counts as this much."""

    def __init__(self, heartbeat_s: float, timeout_s: float, longest_look_s: float = 1.0) -> None:
        self.longest_look_s = longest_look_s
        # Where collectives give up before, nothing may wait longer than they; they are first, and say where they were.
        self.heartbeat_s = min(heartbeat_s, timeout_s + _AFTER_COLLECTIVES_S)
        self.timeout_s = max(timeout_s, self.heartbeat_s)
        self._changes: dict[int, int] = {}
        self._silent_s: dict[int, float] = {}

    def look(self, ranks: Mapping[int, Seen], passed_s: float) -> Hang | None:
        """Take in the living ranks; `passed_s`: since the look before."""
        for rank, seen in ranks.items():
            changed = self._changes.get(rank) != seen.position.changes
            self._silent_s[rank] = 0.0 if changed else self._silent_s[rank] + min(passed_s, self.longest_look_s)
            self._changes[rank] = seen.position.changes
        if not ranks or not self.heartbeat_s or any(seen.position.patient for seen in ranks.values()):
            return None
        silent = {rank: seen for rank, seen in ranks.items() if self._is_silent(rank, seen, self.heartbeat_s)}
        waiting = [rank for rank, seen in silent.items() if seen.position.waiting]
        found = culprits(silent)
        if len(silent) < len(ranks):
            # The others are at work, and may be what a silent one waits for.
            found = [rank for rank in found if rank not in waiting]
        kept = [rank for rank in waiting if rank not in found]
        if found and kept:
            return self._hang(found, kept[0])
        if all(self._is_silent(rank, seen, self.timeout_s) for rank, seen in ranks.items()):
            return self._hang(list(ranks), None)
        return None

    def _is_silent(self, rank: int, seen: Seen, limit_s: float) -> bool:
        # Libraries come from slow disks without a sign of life; who waits for that at the meeting gives up by itself.
        starts = seen.position.phase == STARTING
        return self._silent_s[rank] >= (max(limit_s, _STARTING_S) if starts else limit_s)

    def _hang(self, ranks: list[int], waiting: int | None) -> Hang:
        return Hang(ranks=tuple(sorted(ranks)), silent_s=min(self._silent_s[rank] for rank in ranks), waiting=waiting)


def culprits(ranks: Mapping[int, Seen]) -> list[int]:
    """Of ranks that do nothing: those that are stopped; else those that do not wait; else those that lag behind.

    All of them, where nothing tells them apart.
    """
    stopped = [rank for rank, seen in ranks.items() if seen.stopped]
    if stopped:
        return stopped
    idle = [rank for rank, seen in ranks.items() if not seen.position.waiting]
    if idle:
        return idle
    last = min((seen.position.collectives for seen in ranks.values()), default=0)
    return [rank for rank, seen in ranks.items() if seen.position.collectives == last]
