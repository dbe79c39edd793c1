"""The entry point: makes sure of our own packages, then hands over to the commands."""

import os
import sys
from collections.abc import Sequence

from launcher.guard import LAUNCHER_PID, die_with_parent, end_on_signals, foreign_package
from launcher.spinning import spin_briefly


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; the process's exit code."""
    end_on_signals()
    if LAUNCHER_PID in os.environ:
        die_with_parent()  # at once: on a busy machine the imports take seconds
    spin_briefly(os.environ)
    problem = foreign_package()
    if problem is not None:
        sys.stderr.write(f"shardrun: error: {problem}\n")
        return 2
    from launcher.commands import run_command  # only now: it imports the packages that were just looked for

    return run_command(sys.argv[1:] if argv is None else argv)
