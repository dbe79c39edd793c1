"""What the launcher of a host says of itself, and whether it belongs to a run. Nothing here waits or sends."""

import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass, fields

from launcher.ranks.host import host_name
from launcher.settings.options import ParallelSection
from launcher.version import version

_SAME_COMMAND = "start each host with the same command"
# What must be the same on every host, what is wrong where it is not, and what to do.
_COMPARED = (
    ("rdzv_id", "is another run's", f"{_SAME_COMMAND}, or choose another port for another run"),
    ("nnodes", "counts other hosts", _SAME_COMMAND),
    ("rdzv_backend", "numbers hosts otherwise", _SAME_COMMAND),
    ("nproc_per_node", "starts another number of ranks", f"every host starts the same number: {_SAME_COMMAND}"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Hello:
    """What a launcher says of itself first."""

    rdzv_id: str
    nnodes: int
    rdzv_backend: str
    # -1: to be numbered by host 0.
    node_rank: int
    nproc_per_node: int
    host: str
    pid: int
    version: str

    @classmethod
    def of(cls, parallel: ParallelSection, ranks: int) -> "Hello":
        return cls(
            rdzv_id=parallel.rdzv_id or "",
            nnodes=parallel.nnodes,
            rdzv_backend=parallel.rdzv_backend,
            node_rank=-1 if parallel.node_rank is None or parallel.rdzv_backend == "c10d" else parallel.node_rank,
            nproc_per_node=ranks,
            host=host_name(),
            pid=os.getpid(),
            version=version(),
        )

    @classmethod
    def from_json(cls, found: object) -> "Hello":
        """ValueError where it is none."""
        wanted = {field.name: field.type for field in fields(cls)}
        if not isinstance(found, dict) or {name: type(value) for name, value in found.items()} != wanted:
            raise ValueError
        return cls(**found)

    def __str__(self) -> str:
        return node_name(self.node_rank, self.host)


def node_name(node: int, host: str) -> str:
    return f"node {node} (host {host})" if node >= 0 else f"host {host}"


def other_version(found: object, own: Hello) -> str | None:
    """Why a launcher of another version cannot take part, whatever else it says; None where it is of this one."""
    if not isinstance(found, Mapping) or not isinstance(found.get("version"), str):
        return None
    if found["version"] == own.version:
        return None
    return (
        f"host {found.get('host')} has another shardrun: version {found['version']} there and {own.version} on {own}; "
        "install the same on every host"
    )


def objection(hello: Hello, own: Hello, taken: Collection[int]) -> str | None:
    """Why a launcher is not to take part in the run of host 0; None where it is. `taken`: node ranks of those here."""
    for name, what, remedy in _COMPARED:
        theirs, ours = getattr(hello, name), getattr(own, name)
        if theirs != ours:
            return f"{hello} {what}: {name} is {theirs!r} there and {ours!r} on {own}; {remedy}"
    if own.rdzv_backend == "static" and not 0 <= hello.node_rank < own.nnodes:
        return f"{hello}: node_rank is {hello.node_rank}; number the hosts 0 to {own.nnodes - 1}"
    if own.rdzv_backend == "static" and hello.node_rank in {own.node_rank, *taken}:
        return (
            f"host {hello.host} has a node_rank that another host has: {hello.node_rank}; number the hosts 0 to "
            f"{own.nnodes - 1}, each once"
        )
    return None
