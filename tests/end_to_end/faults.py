"""Tables of faults: each a small function that breaks a copy of a healthy folder, and what must be said of it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.end_to_end.command import BEFORE_LOADING_S, Said

Break = Callable[[Path], object]


@dataclass(frozen=True, kw_only=True)
class Fault:
    """`says`: texts of the message. `mp`: how many shards the healthy folder has, `ranks`: how many are started."""

    break_it: Break
    says: tuple[Said, ...]
    mp: int
    ranks: int
    flags: tuple[str, ...]
    limit_s: float
    env: Mapping[str, str]

    @property
    def all_flags(self) -> tuple[str, ...]:
        return self.flags if self.ranks == 1 else (*self.flags, "--nproc_per_node", str(self.ranks))


@dataclass
class Table:
    """Faults by name, for pytest."""

    faults: dict[str, Fault] = field(default_factory=dict)

    def add(
        self,
        name: str,
        *says: Said,
        mp: int = 1,
        ranks: int | None = None,
        flags: tuple[str, ...] = (),
        limit_s: float = BEFORE_LOADING_S,
        env: Mapping[str, str] | None = None,
    ) -> Callable[[Break], Break]:
        """A decorator for the function that breaks the folder."""

        def keep(break_it: Break) -> Break:
            assert name not in self.faults, name
            self.faults[name] = Fault(
                break_it=break_it, says=says, mp=mp, ranks=ranks or mp, flags=flags, limit_s=limit_s, env=env or {}
            )
            return break_it

        return keep

    def each(self) -> list[object]:
        return [pytest.param(fault, id=name) for name, fault in self.faults.items()]
