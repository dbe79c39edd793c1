"""The checks there are, most likely trouble first, and how long each may take."""

import importlib
from dataclasses import dataclass

from launcher.doctor.checks import Findings, Question

# All checks run at the same time. With the start of the command and the report it ends within 30 seconds.
TOTAL_S = 25.0


@dataclass(frozen=True, slots=True)
class Check:
    """One check: a module of this folder with a function `look`, which runs in a process of its own."""

    name: str
    limit_s: float

    def look(self, question: Question) -> Findings:
        # By name, so that a check's process loads that check alone: some bring in half the project.
        found: Findings = importlib.import_module(f"launcher.doctor.{self.name}").look(question)
        return found


CHECKS = {
    check.name: check
    for check in (
        Check("surroundings", 6.0),
        Check("devices", TOTAL_S),
        Check("checkpoint", 14.0),
        Check("memory", 6.0),
        Check("collective", TOTAL_S),
        Check("names", 14.0),
        Check("ports", 6.0),
        Check("endpoint", 14.0),
        Check("room", 10.0),
        Check("disk", 12.0),
        Check("processor", 6.0),
        Check("clock", 6.0),
        Check("tools", 8.0),
    )
}
