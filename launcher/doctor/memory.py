"""Check: the host's memory, a container's limit on it, swap, and what a process may map."""

import resource
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from launcher.amounts import human
from launcher.cgroups import Use, groups_of, killed_for_memory, memory_uses
from launcher.doctor.checks import RANK_BYTES, Finding, Findings, Question, bad, good, note, plural, unknown

# Weights are mapped: a limit on addresses below this refuses most models.
_ADDRESS_BYTES = 2**37
_FREE_MORE = "end other programs, start fewer ranks, or take a bigger host"


def look(question: Question) -> Findings:
    groups = groups_of("memory")
    try:
        info = parse_meminfo(Path("/proc/meminfo").read_text(encoding="ascii", errors="replace"))
    except OSError:
        info = {}
    yield host_memory(info, question.usual_ranks)
    yield from swap(info)
    yield limit(memory_uses(groups), question.usual_ranks)
    yield from killed(killed_for_memory(groups))
    yield from addresses(resource.getrlimit(resource.RLIMIT_AS)[0])


def parse_meminfo(text: str) -> dict[str, int]:
    """Bytes by name."""
    rows = (line.replace(":", " ").split() for line in text.splitlines())
    return {row[0]: int(row[1]) * 1024 for row in rows if len(row) > 1 and row[1].isdecimal()}


def host_memory(info: Mapping[str, int], ranks: int) -> Finding:
    """What can be had without swapping."""
    if "MemAvailable" not in info:
        return unknown("memory", "/proc/meminfo does not say how much is available")
    available, total = info["MemAvailable"], info.get("MemTotal", 0)
    found = f"{human(available)} of {human(total)} available on this host"
    wanted = ranks * RANK_BYTES
    if available < wanted:
        return bad("memory", f"{found}; {plural(ranks, 'rank')} take {human(wanted)} before any weight", _FREE_MORE)
    return good("memory", found)


def swap(info: Mapping[str, int]) -> Iterator[Finding]:
    """Said only where it is in use: then memory was short."""
    used = info.get("SwapTotal", 0) - info.get("SwapFree", 0)
    if used > 2**30:
        yield note("swap", f"{human(used)} of {human(info['SwapTotal'])} in use: memory is or was short", _FREE_MORE)


def limit(uses: Sequence[Use], ranks: int) -> Finding:
    """The limit that leaves least, of all that a container or a scheduler has set."""
    if not uses:
        return good("memory limit", "no container and no scheduler limits it")
    tightest = min(uses, key=lambda use: use.left)
    found = f"{human(tightest.left)} left of {human(tightest.limit)}, the limit of this container or job"
    wanted = ranks * RANK_BYTES
    if tightest.left < wanted:
        return bad(
            "memory limit",
            f"{found}; {plural(ranks, 'rank')} take {human(wanted)} before any weight, and are killed beyond it",
            "give the container or the job more (docker --memory, Slurm --mem, Kubernetes limits.memory)",
        )
    return good("memory limit", found)


def killed(count: int) -> Iterator[Finding]:
    """Said where the kernel has already killed for memory here."""
    if count:
        found = f"{plural(count, 'time')} the kernel has killed a process of this container or job when memory ran out"
        yield note("memory limit", found, "give it more memory")


def addresses(soft: int) -> Iterator[Finding]:
    """Said where a process may not map much."""
    if soft != resource.RLIM_INFINITY and soft < _ADDRESS_BYTES:
        yield bad(
            "address space",
            f"a process may have {human(soft)} of addresses only (ulimit -v), and whole weight files are mapped",
            "ulimit -v unlimited",
        )
