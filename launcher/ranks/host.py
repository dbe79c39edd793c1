"""Facts of this host that the launcher needs: its name, its memory, what a process of it is up to. Linux's /proc;
elsewhere nothing is known, and nothing is made up."""

import os
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from launcher.cgroups import Group, groups_of, killed_for_memory, memory_uses

# What the kernel calls a process's state, in words.
_STATES = {
    "R": "computing",
    "S": "sleeping",
    "D": "waiting for a disk or a device",
    "T": "stopped by a signal (SIGSTOP or Ctrl-Z)",
    "t": "stopped by a debugger",
    "Z": "dead",
}
# Whose memory.
HOST, LIMITED = "the host", "its control group"


def host_name() -> str:
    return socket.gethostname()


@dataclass(frozen=True, slots=True, kw_only=True)
class HostMemory:
    """The host's memory at one moment, or a container's where that is less; 0 where it is not known."""

    total_bytes: int = 0
    free_bytes: int = 0
    whose: str = HOST
    # How often the kernel has killed a process for want of memory.
    kills: int = 0


def read_memory(root: Path = Path("/"), groups: Sequence[Group] | None = None) -> HostMemory:
    """What /proc and the control groups say (default: those that this process is in)."""
    groups = groups_of("memory") if groups is None else groups
    figures = _figures(root / "proc/meminfo", ":")
    total, free, whose = figures.get("MemTotal", 0) * 1024, figures.get("MemAvailable", 0) * 1024, HOST
    # The tightest limit is that which a process meets first.
    tightest = min(memory_uses(groups), key=lambda use: use.left, default=None)
    if tightest is not None and tightest.left < free and tightest.limit < total:
        total, free, whose = tightest.limit, tightest.left, LIMITED
    return HostMemory(total_bytes=total, free_bytes=free, whose=whose, kills=_kills(root, groups))


def _kills(root: Path, groups: Sequence[Group]) -> int:
    """Of this process's control group, where it counts them: those of the host may be another container's."""
    counts = any(group.read("memory.events" if group.version == 2 else "memory.oom_control") for group in groups[:1])
    return killed_for_memory(groups) if counts else _figures(root / "proc/vmstat", " ").get("oom_kill", 0)


def held_bytes(pid: int) -> int:
    """The memory that only this process holds, and that of the host it would give back; 0 where it has gone."""
    fields = _text(Path(f"/proc/{pid}/statm")).split()
    return (int(fields[1]) - int(fields[2])) * os.sysconf("SC_PAGE_SIZE") if len(fields) > 2 else 0


def state_of(pid: int) -> str:
    """The kernel's letter for what the process does; '' where it has gone."""
    after_name = _text(Path(f"/proc/{pid}/stat")).rpartition(")")[2].split()
    return after_name[0] if after_name else ""


def state_words(letter: str) -> str:
    return _STATES.get(letter, "")


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""


def _figures(path: Path, separator: str) -> dict[str, int]:
    found = {}
    for line in _text(path).splitlines():
        name, _, rest = line.partition(separator)
        number = rest.split()[:1]
        if number and number[0].isdecimal():
            found[name] = int(number[0])
    return found
