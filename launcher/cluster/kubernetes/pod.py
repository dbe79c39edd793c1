"""What one of several pods runs: `python -m launcher`, with what Kubernetes wants besides.

Before it, the first pod's name must be known: it has an address only from when that pod has a node, and pods come in
any order. Elsewhere a name without an address is a mistake, which the launcher refuses at once. Behind a failure the
first pod must be seen to end before the others.
"""

import os
import signal
import sys
import time
from collections.abc import Sequence

from launcher.cli import main
from launcher.console import say
from launcher.guard import end_on_signals, stop_signals
from parallel.addresses import Unresolved, resolve

_POLL_S = 1.0
_TELL_S = 10.0
_BEHIND_S = 5.0


def run_pod(arguments: Sequence[str]) -> int:
    """Run the launcher with these arguments; its exit code."""
    end_on_signals()
    host = _given(arguments, "parallel.rdzv_endpoint").rpartition(":")[0]
    # A variable that the container does not have stands there as it is written; waiting would not help.
    if not host.startswith("$("):
        await_name(host, float(_given(arguments, "parallel.join_timeout_s")))
    code = main(arguments)
    if code and _given(arguments, "parallel.node_rank") not in ("", "0"):
        _stay_behind(code)
    return code


def await_name(host: str, limit_s: float) -> None:
    """Wait for a name to have an address, so long; what then is still unknown the launcher explains."""
    started = time.monotonic()
    next_s = _TELL_S
    while (passed_s := time.monotonic() - started) < limit_s:
        try:
            resolve(host)
            return
        except Unresolved as reason:
            if passed_s >= next_s:
                next_s += _TELL_S
                say(f"waiting for {host}, the first pod ({reason}); {limit_s - passed_s:.0f} s left")
        time.sleep(_POLL_S)


def _stay_behind(code: int) -> None:
    """Let the first pod end first.

    At the first failure Kubernetes removes the pods that it believes to run, and their output with them; what went
    wrong is told in the first pod's.
    """
    for number in stop_signals():
        signal.signal(number, lambda *_: os._exit(code))
    time.sleep(_BEHIND_S)


def _given(arguments: Sequence[str], key: str) -> str:
    return next((text.partition("=")[2] for text in arguments if text.startswith(f"{key}=")), "")


if __name__ == "__main__":
    sys.exit(run_pod(sys.argv[1:]))
