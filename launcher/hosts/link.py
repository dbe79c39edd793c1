"""The launchers of a run's hosts, seen from one of them: what they tell each other while their ranks run.

`Alone` is the link of a run on one host: nobody to tell. `head.Head` and `member.Member` are those of several.
Host 0 decides; docs/adr/0013-our-own-launcher-on-every-host.md.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from launcher.ranks.ends import RankEnd
from launcher.ranks.verdict import Verdict, verdict_of
from launcher.ranks.watch import Hang, Seen

# A launcher that was not heard of for so long is lost: its host, or the network between.
LOST_S = 10.0
ENDED = "its launcher ended without a word: it was killed, or its host went down"
SILENT = f"{LOST_S:.0f} s: its host or the network to it is down, or it was stopped"
BEAT_S = 1.0
# For another host to end its ranks (settle, terminate, kill) and to tell of it.
ENDED_S = 6.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """This host's part of a run."""

    node: int = 0
    first_rank: int = 0
    world_size: int
    # Where rank 0's store listens; None: all ranks are here.
    master: tuple[str, int] | None = None
    variables: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """This host's ranks at one look."""

    seen: Mapping[int, Seen]
    failed: bool
    done: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class News:
    """What the link says of the whole run."""

    # All ranks of all hosts are done.
    done: bool = False
    # This host is to end its ranks: somebody failed elsewhere.
    stop: bool = False
    # The ranks of other hosts, where this host watches over them.
    others: Mapping[int, Seen] = field(default_factory=dict)


class Link(Protocol):
    """What the supervisor needs of it. None of these waits, but for `begin` and `decide`."""

    # Whether this host looks for ranks that hang.
    watches: bool
    # Whether this host decides, and says why a run failed.
    speaks: bool

    def begin(self, attempt: int) -> Place:
        """Meet for an attempt."""
        ...

    def exchange(self, state: State) -> News: ...

    def decide(self, ends: Sequence[RankEnd], hang: Hang | None) -> Verdict:
        """What became of the attempt, when this host's ranks have ended."""
        ...

    def conclude(self, verdict: Verdict, again: bool) -> bool:
        """Tell the others, or be told; whether there is another attempt."""
        ...

    def stopped(self, signal_number: int) -> None:
        """This host was told to stop, and its ranks have ended."""
        ...

    def close(self) -> None: ...


class Alone:
    """One host."""

    watches = True
    speaks = True

    def __init__(self, place: Place) -> None:
        self.place = place

    def begin(self, attempt: int) -> Place:  # noqa: ARG002
        return self.place

    def exchange(self, state: State) -> News:
        return News(done=state.done)

    def decide(self, ends: Sequence[RankEnd], hang: Hang | None) -> Verdict:
        return verdict_of(ends, hang)

    def conclude(self, verdict: Verdict, again: bool) -> bool:  # noqa: ARG002
        return again

    def stopped(self, signal_number: int) -> None:
        pass

    def close(self) -> None:
        pass
