"""How a process of our own is started: with the same files as this one, and not to outlive it."""

import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from launcher.guard import die_with_parent

_ROOT = Path(__file__).resolve().parents[2]


def own_command(module: str, *arguments: str) -> list[str]:
    """The command line of a module of this folder."""
    return [sys.executable, "-P", "-m", f"launcher.doctor.{module}", *arguments]


def own_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """`environ` with our own packages first in PYTHONPATH."""
    known = [str(_ROOT), environ.get("PYTHONPATH", "")]
    return {**environ, "PYTHONPATH": os.pathsep.join(filter(None, known))}


def bound_to_us() -> Callable[[], None]:
    """What a new process calls first (preexec_fn): it then dies with this one, even where this one is gone by then."""
    ours = os.getpid()

    def bind() -> None:
        die_with_parent()
        if os.getppid() != ours:
            os._exit(1)

    return bind
