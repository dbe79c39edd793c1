"""Limits that a container or a scheduler sets: control groups of version 1 and 2, read off /proc and /sys."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

# Version 1 says "no limit" with a number near 2**63.
_NO_LIMIT = 2**60


@dataclass(frozen=True, slots=True)
class Group:
    """The folder of a control group, this process's own or one above it."""

    version: int
    folder: Path

    def read(self, name: str) -> str | None:
        """The text of one of its files; None where it has none of this name."""
        try:
            return (self.folder / name).read_text(encoding="ascii", errors="replace").strip()
        except OSError:
            return None


@dataclass(frozen=True, slots=True)
class Use:
    """Of something limited: how much there may be, and how much there is."""

    limit: int
    used: int

    @property
    def left(self) -> int:
        return max(0, self.limit - self.used)


def groups_of(controller: str) -> list[Group]:
    """The control groups that limit this process, its own first and then those above it."""
    try:
        own = Path("/proc/self/cgroup").read_text(encoding="ascii", errors="replace")
        mounts = Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return []
    return find_groups(controller, own, mounts)


def find_groups(controller: str, own: str, mounts: str) -> list[Group]:
    """The same, from the texts of /proc/self/cgroup and /proc/self/mountinfo."""
    found: list[Group] = []
    for line in own.splitlines():
        number, controllers, path = (line.split(":", 2) + ["", ""])[:3]
        version = 2 if number == "0" and not controllers else 1
        if version == 2 or controller in controllers.split(","):
            for root, point in _mounts(version, controller, mounts):
                found += [Group(version, folder) for folder in _upwards(path, root, point)]
                break
    return found


def _mounts(version: int, controller: str, mounts: str) -> list[tuple[str, str]]:
    """Which part of the hierarchy is mounted where."""
    found = []
    for line in mounts.splitlines():
        fields, _, kind = line.partition(" - ")
        columns, kinds = fields.split(), kind.split()
        if len(columns) < 5 or len(kinds) < 3:
            continue
        wanted = kinds[0] == "cgroup2" if version == 2 else kinds[0] == "cgroup" and controller in kinds[2].split(",")
        if wanted:
            found.append((columns[3], columns[4]))
    return found


def _upwards(path: str, root: str, point: str) -> list[Path]:
    """The folders of `path` and of all above it, below the mount."""
    inside = PurePosixPath(path)
    # In a container the path may be the host's, of which only this group is mounted.
    relative = PurePosixPath(os.path.relpath(inside, root)) if inside.is_relative_to(root) else PurePosixPath(".")
    return [Path(point) / part for part in (relative, *relative.parents)] if relative.parts else [Path(point)]


def memory_uses(groups: Sequence[Group]) -> list[Use]:
    """Each limit of memory, and what counts against it: pages of files are given back when memory is wanted."""
    found = []
    for group in groups:
        limit, used = (
            ("memory.max", "memory.current")
            if group.version == 2
            else ("memory.limit_in_bytes", "memory.usage_in_bytes")
        )
        names = ("active_file", "inactive_file") if group.version == 2 else ("total_active_file", "total_inactive_file")
        counted = counts(group.read("memory.stat"))
        use = use_of(group.read(limit), group.read(used), sum(counted.get(name, 0) for name in names))
        if use is not None:
            found.append(use)
    return found


def process_uses(groups: Sequence[Group]) -> list[Use]:
    """Each limit on the number of processes and threads."""
    uses = (use_of(group.read("pids.max"), group.read("pids.current")) for group in groups)
    return [use for use in uses if use is not None]


def use_of(limit: str | None, used: str | None, given_back: int = 0) -> Use | None:
    """None where there is no limit, or where it cannot be read."""
    if limit is None or used is None or not (limit.isdecimal() and used.isdecimal()) or int(limit) >= _NO_LIMIT:
        return None
    return Use(int(limit), max(0, int(used) - given_back))


def killed_for_memory(groups: Sequence[Group]) -> int:
    """How many processes of this group the kernel has killed since memory ran out."""
    for group in groups[:1]:
        return counts(group.read("memory.events" if group.version == 2 else "memory.oom_control")).get("oom_kill", 0)
    return 0


def core_quota(groups: Sequence[Group]) -> float | None:
    """How many cores' time may be used; None where all may."""
    quotas = []
    for group in groups:
        words = (
            (group.read("cpu.max") or "").split()
            if group.version == 2
            else [group.read("cpu.cfs_quota_us") or "", group.read("cpu.cfs_period_us") or ""]
        )
        if len(words) == 2 and all(word.isdecimal() for word in words) and int(words[1]):
            quotas.append(int(words[0]) / int(words[1]))
    return min(quotas, default=None)


def counts(text: str | None) -> dict[str, int]:
    """Numbers by name, of lines such as 'oom_kill 3'."""
    pairs = (line.split() for line in (text or "").splitlines())
    return {pair[0]: int(pair[1]) for pair in pairs if len(pair) == 2 and pair[1].isdecimal()}
