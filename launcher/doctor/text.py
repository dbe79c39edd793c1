"""The report: for people, what is bad first; for programs, one JSON object."""

import json
import textwrap
from collections.abc import Sequence
from dataclasses import asdict

from launcher.doctor.checks import Finding, plural
from launcher.doctor.running import verdicts

_ORDER = ("bad", "unknown", "good", "note")
_UNFOLDED = 10**6
# Names and arrows take half of it.
_NARROWEST = 60


def ordered(findings: Sequence[Finding]) -> list[Finding]:
    """What needs somebody first; alike, in the order of the checks."""
    return sorted(findings, key=lambda finding: _ORDER.index(finding.verdict))


def as_text(findings: Sequence[Finding], seconds: float, width: int | None = None) -> str:
    """A line a finding, its remedy below it, and what it comes to. `width`: of a terminal, to fold lines at."""
    column = max((len(finding.name) for finding in findings), default=0)
    lines = [line for finding in ordered(findings) for line in _lines(finding, column, width or _UNFOLDED)]
    return "\n".join([*lines, summary(findings, seconds)]) + "\n"


def _lines(finding: Finding, column: int, width: int) -> list[str]:
    indent = " " * (9 + column + 2)
    head = f"{finding.verdict:<9}{finding.name:<{column}}  "
    lines = textwrap.wrap(
        printable(finding.found), max(width, _NARROWEST), initial_indent=head, subsequent_indent=indent
    )
    if finding.remedy:
        lines += textwrap.wrap(
            printable(finding.remedy),
            max(width, _NARROWEST),
            initial_indent=f"{indent}-> ",
            subsequent_indent=f"{indent}   ",
        )
    return lines


def printable(text: str) -> str:
    """Names of files and hosts may hold anything: what would control a terminal is shown, not sent."""
    return "".join(letter if letter.isprintable() else letter.encode("unicode_escape").decode() for letter in text)


def summary(findings: Sequence[Finding], seconds: float) -> str:
    counts = ", ".join(f"{len(verdicts(findings, verdict))} {verdict}" for verdict in _ORDER[:3])
    return f"{plural(len(findings), 'line')} in {seconds:.1f} s: {counts}"


def as_json(findings: Sequence[Finding], seconds: float) -> str:
    """One object; `verdict` is bad where any finding is."""
    report = {
        "verdict": "bad" if verdicts(findings, "bad") else "good",
        "seconds": round(seconds, 3),
        **{verdict: len(verdicts(findings, verdict)) for verdict in _ORDER},
        "findings": [asdict(finding) for finding in ordered(findings)],
    }
    return json.dumps(report, ensure_ascii=False) + "\n"
