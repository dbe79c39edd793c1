"""What is said of a run that failed, and its exit code: one true cause, out of all that the ranks left behind.

A table of rules, the first that applies decides. Pure: from how each rank ended to a sentence.
"""

import re
import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from launcher.ranks.ends import RankEnd
from launcher.ranks.host import state_words
from launcher.ranks.report import LESS, OUR_FAULT, RANK_FAILED, READER_GONE, SIGNALLED, Failure
from launcher.ranks.watch import Hang, Seen, culprits
from parallel.errors import RefusedError
from parallel.position import ENDING

_REMEDIES: dict[int, str] = {
    signal.SIGBUS: "a weight file was cut short while it was in use: weights stay in their files; or /dev/shm is full",
    signal.SIGSEGV: "a crash of a library: the rank's log (--log_dir) has what it said last",
    signal.SIGABRT: "a library gave up: the rank's log (--log_dir) has what it said last",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """How the whole run ended."""

    code: int
    # "": nothing is to be said.
    text: str = ""
    # Somebody asked it to stop: no error.
    stopped: bool = False
    # Printed before the text: the trace of a fault of our own.
    trace: str = ""
    # For want of memory: whoever knows the model can say what would fit.
    no_memory: bool = False


def verdict_of(ends: Sequence[RankEnd], hang: Hang | None = None) -> Verdict:
    """What became of a run some of whose ranks failed; `hang`: what the watch found, where that ended it."""
    for rule in (_reader_gone, _hung, _killed, _told, _crashed, _left_early, _stopped, _kept_waiting, _echo):
        found = rule(ends, hang)
        if found is not None:
            return found
    return _silent(ends)


def _first(ends: Sequence[RankEnd], wanted: Callable[[RankEnd], bool]) -> RankEnd | None:
    """The first to have ended by itself of those that are wanted."""
    own = [end for end in ends if end.ended_s is not None and wanted(end)]
    return min(own, key=lambda end: end.ended_s or 0.0, default=None)


def _failures(ends: Sequence[RankEnd]) -> list[tuple[RankEnd, Failure]]:
    found = [(end, end.failure) for end in ends if end.failure is not None]
    return sorted(found, key=lambda pair: pair[1].time_s)


def _reader_gone(ends: Sequence[RankEnd], _hang: Hang | None) -> Verdict | None:
    return Verdict(code=READER_GONE) if _first(ends, lambda end: end.code == READER_GONE) else None


def _hung(ends: Sequence[RankEnd], hang: Hang | None) -> Verdict | None:
    return None if hang is None else Verdict(code=RANK_FAILED, text=_hang_text(ends, hang))


def _hang_text(ends: Sequence[RankEnd], hang: Hang) -> str:
    by_rank = {end.rank: end for end in ends}
    hung = [by_rank[rank] for rank in hang.ranks if rank in by_rank]
    named = "; ".join(_one_hung(end) for end in hung[:4]) + (f"; and {len(hung) - 4} more" if len(hung) > 4 else "")
    wait = ""
    if hang.waiting is not None and hang.waiting in by_rank:
        waits_in = by_rank[hang.waiting].position
        wait = f"; rank {hang.waiting} waits for {'it' if len(hung) == 1 else 'them'} while {waits_in}"
    limit = "--timeout_s" if hang.waiting is None else "--heartbeat_s"
    return (
        f"{named}: no sign of life for {hang.silent_s:.0f} s{wait}; it was ended ({limit} says how long such silence "
        "may last)"
    )


def _one_hung(end: RankEnd) -> str:
    state = state_words(end.state)
    return f"{end} hangs while {end.position}{f', {state}' if state else ''}"


def _told(ends: Sequence[RankEnd], _hang: Hang | None) -> Verdict | None:
    for end, failure in _failures(ends):
        if failure.cause:
            trace = end.trace if failure.exit_code == OUR_FAULT and end.rank else ""
            return Verdict(
                code=failure.exit_code, text=_placed(ends, failure.text), trace=trace, no_memory=failure.no_memory
            )
    return None


def _placed(ends: Sequence[RankEnd], text: str) -> str:
    """What is said of a rank, with its process and host."""
    named = re.match(r"rank (\d+) ", text)
    end = next((end for end in ends if named and end.rank == int(named[1])), None)
    return f"{end} {text[named.end() :]}" if named and end is not None else text


def _killed(ends: Sequence[RankEnd], _hang: Hang | None) -> Verdict | None:
    """Before what others tell: no rank does this to itself, and those that miss it may take that for a fault."""
    end = _first(ends, lambda end: end.code == -signal.SIGKILL)
    return None if end is None else _killed_by(end, _memory_words(end), no_memory=bool(end.memory_kills))


def _crashed(ends: Sequence[RankEnd], _hang: Hang | None) -> Verdict | None:
    """Behind what others tell: libraries give up, by a signal, when another rank has gone."""
    end = _first(ends, lambda end: end.code < 0)
    return None if end is None else _killed_by(end, _REMEDIES.get(-end.code, ""))


def _killed_by(end: RankEnd, remedy: str, no_memory: bool = False) -> Verdict:
    text = f"{end} was killed by {_signal_name(-end.code)} while {end.position}{f': {remedy}' if remedy else ''}"
    return Verdict(code=RANK_FAILED, text=text, no_memory=no_memory)


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # one of the real-time ones
        return f"signal {number}"


def _memory_words(end: RankEnd) -> str:
    """Whether it was the kernel for want of memory, as far as that can be known."""
    held = f"it held {end.held_bytes / 1e9:.2g} GB" if end.held_bytes else ""
    free = f"{end.free_bytes / 1e9:.2g} of {end.total_bytes / 1e9:.3g} GB of {end.memory_of}'s memory were free"
    known = ", ".join(filter(None, [held, free if end.total_bytes else ""]))
    figures = f" ({known})" if known else ""
    if end.memory_kills:
        why = f"{end.memory_of}'s memory ran out, and the kernel killed it{figures}"
        return f"{why}; {LESS}"
    return f"by somebody, or because {end.memory_of}'s memory ran out{figures}: see dmesg"


def _left_early(ends: Sequence[RankEnd], _hang: Hang | None) -> Verdict | None:
    early = _first(ends, lambda end: end.code == 0 and end.position.phase != ENDING)
    if early is None:
        return None
    return Verdict(code=RANK_FAILED, text=f"{early} left early (exit 0) while {early.position}")


def _stopped(ends: Sequence[RankEnd], _hang: Hang | None) -> Verdict | None:
    # Those that we ended were asked by us.
    own = [(end, failure) for end, failure in _failures(ends) if end.ended_s is not None]
    stopped = next((pair for pair in own if pair[1].exit_code > SIGNALLED), None)
    if stopped is None:
        return None
    end, failure = stopped
    # Ctrl-C is rank 0's to handle in a chat; any other signal somebody sent to that one rank.
    if end.rank == 0 and failure.exit_code == SIGNALLED + signal.SIGINT:
        return Verdict(code=failure.exit_code, text=failure.text, stopped=True)
    return Verdict(code=RANK_FAILED, text=f"{end} was {failure.text} while {failure.doing}")


def _kept_waiting(ends: Sequence[RankEnd], _hang: Hang | None) -> Verdict | None:
    """Some gave up waiting: whoever was still running then, and did not wait, kept them."""
    if not _failures(ends):
        return None
    running = {end.rank: Seen(position=end.position, state=end.state) for end in ends if end.ended_s is None}
    found = [rank for rank in culprits(running) if running[rank].stopped or not running[rank].position.waiting]
    if not found or len(found) == len(ends):
        return None
    hung = next(end for end in ends if end.rank == found[0])
    waited = _failures(ends)[0][1]
    return Verdict(
        code=RANK_FAILED, text=f"{_one_hung(hung)}; the others waited for it until they gave up: {waited.text}"
    )


def _echo(ends: Sequence[RankEnd], _hang: Hang | None) -> Verdict | None:
    failures = _failures(ends)
    if not failures:
        return None
    _, first = failures[0]
    return Verdict(code=first.exit_code, text=_placed(ends, first.text))


def _silent(ends: Sequence[RankEnd]) -> Verdict:
    end = _first(ends, lambda end: end.code != 0)
    if end is None:
        return Verdict(code=RANK_FAILED, text="a rank failed, and its host did not say which, or why")
    if end.code - SIGNALLED in set(signal.Signals):
        # It was stopped before it could say so.
        text = f"{end} was stopped by {_signal_name(end.code - SIGNALLED)} while {end.position}"
    else:
        text = f"{end} ended with exit code {end.code} and said no reason, while {end.position}"
    refused = end.code == RefusedError.exit_code
    return Verdict(code=end.code if refused else RANK_FAILED, text=text)
