"""Check: whether the clock runs evenly, is set, and is held by a time server."""

import ctypes
import sys
import time

from launcher.doctor.checks import Finding, Findings, Question, bad, good, note, unknown

_WATCHED_S = 0.3
_UNEVEN_S = 0.05
# Nothing of ours is older: a clock before it was never set (2024-01-01).
_EARLIEST = 1_704_067_200
# sys/timex.h: adjtimex returns this where the kernel's clock is not synchronised; it fits the structure with room.
_TIME_ERROR = 5
_TIMEX_BYTES = 512


def look(_question: Question) -> Findings:
    wall, steady = time.time(), time.monotonic()
    time.sleep(_WATCHED_S)
    yield clock(time.time(), (time.time() - wall) - (time.monotonic() - steady))
    yield synchronised(_kernel_state())


def clock(now: float, jumped_s: float) -> Finding:
    """Whether the wall's clock is set and goes as the steady one does."""
    shown = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(now))
    remedy = "set it, and let a time server hold it (systemctl enable --now systemd-timesyncd, or chrony)"
    if now < _EARLIEST:
        return bad("clock", f"it is {shown} here: it was never set", remedy)
    if abs(jumped_s) > _UNEVEN_S:
        return bad("clock", f"{shown}; it jumped by {jumped_s:.2f} s while it was watched", remedy)
    return good("clock", f"{shown}, and it runs evenly")


def _kernel_state() -> int | None:
    """What adjtimex says of the kernel's clock when nothing is changed; None where it cannot be asked."""
    if sys.platform != "linux":
        return None
    try:
        # The first word of the structure, the modes, is 0: read only.
        return int(ctypes.CDLL(None).adjtimex(ctypes.create_string_buffer(_TIMEX_BYTES)))
    except (OSError, AttributeError):
        return None


def synchronised(state: int | None) -> Finding:
    """Whether a time server holds the clock: only the times of several hosts' logs depend on it."""
    if state is None or state < 0:
        return unknown("time server", "the kernel does not say whether one holds the clock")
    if state == _TIME_ERROR:
        return note(
            "time server",
            "none holds the clock, as far as the kernel knows: times in the logs of several hosts may not fit",
            "for several hosts run chrony or systemd-timesyncd",
        )
    return good("time server", "one holds the clock")
