"""What a check is asked, and what it says: findings, each with a verdict and what to do."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, Literal

Verdict = Literal["bad", "unknown", "good", "note"]
Device = Literal["auto", "cuda", "cpu"]
# A rank's own memory once it has loaded torch, before any weight: about 0.3 GB, measured.
RANK_BYTES = 400_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What the user wants to run here, as far as it was said."""

    folder: str | None = None
    ranks: int | None = None
    endpoint: str | None = None
    device: Device = "auto"

    @property
    def usual_ranks(self) -> int:
        """As many as were named, else two: the fewest that need each other."""
        return self.ranks or 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One line of the report."""

    name: str
    verdict: Verdict
    found: str
    remedy: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """What is tried next, said beforehand: it may never end. `finding.found` is what is then being done."""

    finding: Finding


Said = Finding | Attempt
Findings = Iterator[Said]


def good(name: str, found: str) -> Finding:
    return Finding(name=name, verdict="good", found=found)


def bad(name: str, found: str, remedy: str) -> Finding:
    return Finding(name=name, verdict="bad", found=found, remedy=remedy)


def unknown(name: str, found: str, remedy: str = "") -> Finding:
    return Finding(name=name, verdict="unknown", found=found, remedy=remedy)


def note(name: str, found: str, remedy: str = "") -> Finding:
    return Finding(name=name, verdict="note", found=found, remedy=remedy)


def trying(name: str, doing: str, remedy: str, verdict: Verdict = "bad") -> Attempt:
    """Before anything that may hang. Forgotten with the next finding."""
    return Attempt(finding=Finding(name=name, verdict=verdict, found=doing, remedy=remedy))


def as_message(said: Said) -> dict[str, Any]:
    """For the way from a check's process to the command's."""
    if isinstance(said, Attempt):
        return {"attempt": True, **asdict(said.finding)}
    return {"attempt": False, **asdict(said)}


def from_message(message: dict[str, Any]) -> Said:
    finding = Finding(**{key: value for key, value in message.items() if key != "attempt"})
    return Attempt(finding=finding) if message["attempt"] else finding


def plural(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"
