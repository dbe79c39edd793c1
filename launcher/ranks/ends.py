"""How a rank ended, as the launcher saw it; crosses from host to host as JSON."""

from dataclasses import asdict, dataclass, replace
from typing import Any

from launcher.ranks.host import HOST
from launcher.ranks.report import Failure
from parallel.position import Position


@dataclass(frozen=True, slots=True, kw_only=True)
class RankEnd:
    """One rank when everything was over."""

    rank: int
    pid: int
    host: str
    # As Popen tells it: below 0 the signal.
    code: int
    # When its end was seen; None: it was ended because of another.
    ended_s: float | None
    position: Position
    # The kernel's letter for its state when the first rank failed.
    state: str = ""
    # The most memory that it alone was seen to hold.
    held_bytes: int = 0
    # Of its host, or of the part of it that this run may have: what was free before it ended, all, and whether the
    # kernel has killed for want of memory meanwhile.
    free_bytes: int = 0
    total_bytes: int = 0
    memory_of: str = HOST
    memory_kills: int = 0
    failure: Failure | None = None
    # What it wrote to its log last, for a trace that nobody else has shown.
    trace: str = ""

    def __str__(self) -> str:
        return f"rank {self.rank} (pid {self.pid}, host {self.host})"

    def later(self, seconds: float) -> "RankEnd":
        """The same by a clock that is ahead of its host's."""
        failure = self.failure and replace(self.failure, time_s=self.failure.time_s + seconds)
        return replace(self, ended_s=None if self.ended_s is None else self.ended_s + seconds, failure=failure)

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> "RankEnd":
        failure = fields["failure"]
        return cls(
            **fields
            | {
                "position": Position(**fields["position"]),
                "failure": None if failure is None else Failure(**failure),
            }
        )
