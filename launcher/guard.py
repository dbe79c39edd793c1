"""What a process makes sure of before it imports anything of ours. Imports nothing of ours itself."""

import ctypes
import importlib.util
import os
import signal
import sys
from pathlib import Path

_PR_SET_PDEATHSIG = 1
LAUNCHER_PID = "SHARDRUN_LAUNCHER_PID"


def end_on_signals() -> None:
    """Let SIGINT, SIGTERM and SIGHUP end the process at once, with a line and 128 + n.

    For the time of imports: an exception that a handler raises there is swallowed by some libraries.
    `launcher.ranks.report.stop_on_signals` takes over once there is something to clean up.
    """

    def end(number: int, _frame: object) -> None:
        # Whoever started us as one of several ranks speaks for all.
        if not {"SHARDRUN_RUN_FOLDER", "TORCHELASTIC_RUN_ID"} & os.environ.keys():
            os.write(2, f"shardrun: stopped by {signal.Signals(number).name}\n".encode())
        os._exit(128 + number)

    for number in stop_signals():
        signal.signal(number, end)


def stop_signals() -> list[signal.Signals]:
    """The signals that ask us to stop, but for those that our parent wants ignored (nohup, background jobs)."""
    asked = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    return [number for number in asked if signal.getsignal(number) is not signal.SIG_IGN]


def die_with_parent() -> None:
    """Ask the kernel to kill this process when the one that started it ends (Linux).

    Without it a launcher that is killed leaves its ranks running. Ours says who it is: it may have been killed
    before we could ask.
    """
    if sys.platform != "linux":
        return
    parent = int(os.environ.get(LAUNCHER_PID, os.getppid()))
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(128 + signal.SIGKILL)


def foreign_package() -> str | None:
    """What is wrong where `model` or `parallel` would come from elsewhere: the names are generic."""
    root = Path(__file__).resolve().parent.parent
    for name in ("model", "parallel"):
        spec = importlib.util.find_spec(name)
        found = Path(spec.origin).resolve() if spec is not None and spec.origin else None
        if found is None or found.parent.parent != root:
            return (
                f"the package '{name}' comes from {found}, not from shardrun's {root / name}; "
                "run from another folder, or take that path out of PYTHONPATH"
            )
    return None
