"""What is said of a run that failed: from how its ranks ended, made up here, to the sentence and the exit code."""

import json
import signal
from collections.abc import Sequence
from dataclasses import replace

import pytest

from launcher.ranks.ends import RankEnd
from launcher.ranks.host import LIMITED
from launcher.ranks.report import LESS, Failure
from launcher.ranks.verdict import Verdict, verdict_of
from launcher.ranks.watch import Hang
from parallel.position import ENDING, Position

DECODING = Position(phase="decoding", step=5)
WAITING = Position(phase="decoding", step=5, waiting=True, operation="all-gather", collectives=87)


def ended(rank: int, code: int, at_s: float | None = 10.0, position: Position = DECODING) -> RankEnd:
    """A rank that ended by itself, or (`at_s` None) was ended by the launcher."""
    return RankEnd(rank=rank, pid=100 + rank, host=f"h{rank}", code=code, ended_s=at_s, position=position)


def said(end: RankEnd, text: str, *, cause: bool = True, at_s: float = 9.9, no_memory: bool = False) -> RankEnd:
    """The same, having written down why."""
    failure = Failure(
        rank=end.rank, exit_code=end.code, text=text, cause=cause, time_s=at_s, doing=str(DECODING), no_memory=no_memory
    )
    return replace(end, failure=failure)


ECHO = said(ended(0, 3), "rank 0 lost contact with another rank", cause=False)
BY_US = ended(0, 143, at_s=None, position=WAITING)
KILLED = ended(1, -signal.SIGKILL, at_s=9.8)
BY_SOMEBODY = "rank 1 (pid 101, host h1) was killed by SIGKILL while decoding (step 5): by somebody, or because"

# How the ranks ended; the exit code; the whole message.
ENDS: dict[str, tuple[Sequence[RankEnd], int, str]] = {
    "a rank's own word is the cause, with its process and host": (
        [ECHO, said(ended(1, 3), "rank 1 failed while decoding (step 5): it was asked to")],
        3,
        "rank 1 (pid 101, host h1) failed while decoding (step 5): it was asked to",
    ),
    "of two causes the first": (
        [said(ended(0, 3), "rank 0 broke", at_s=9.9), said(ended(1, 3), "rank 1 broke", at_s=9.7)],
        3,
        "rank 1 (pid 101, host h1) broke",
    ),
    "what a rank says of another has that one's process and host": (
        [said(ended(0, 3), "rank 1 differs from rank 0"), ended(1, 143, at_s=None)],
        3,
        "rank 1 (pid 101, host h1) differs from rank 0",
    ),
    "what is said of no rank has none": (
        [said(ended(0, 3), "the logits of prompt 0 are not finite"), ended(1, 143, at_s=None)],
        3,
        "the logits of prompt 0 are not finite",
    ),
    "a refusal keeps its exit code and its words": (
        [said(ended(0, 2), "no such folder"), said(ended(1, 2), "no such folder")],
        2,
        "no such folder",
    ),
    "a killed rank before the one that misses it": (
        [ECHO, KILLED],
        3,
        f"{BY_SOMEBODY} the host's memory ran out: see dmesg",
    ),
    "a killed rank before one that took that for a fault of its own": (
        [said(ended(0, 1), "rank 0 failed: KeyError (a fault of shardrun's)"), KILLED],
        3,
        f"{BY_SOMEBODY} the host's memory ran out: see dmesg",
    ),
    "a killed rank with what it held and what was free": (
        [BY_US, replace(KILLED, held_bytes=1_600_000_000, free_bytes=22_000_000_000, total_bytes=25_300_000_000)],
        3,
        f"{BY_SOMEBODY} the host's memory ran out (it held 1.6 GB, 22 of 25.3 GB of the host's memory were free): "
        "see dmesg",
    ),
    "a rank that we killed is not the cause": (
        [ended(0, -signal.SIGKILL, at_s=None, position=WAITING), said(ended(1, 3), "rank 1 broke")],
        3,
        "rank 1 (pid 101, host h1) broke",
    ),
    "the library that gave up when its peer had told why is not the cause": (
        [ended(0, -signal.SIGABRT), said(ended(1, 3), "rank 1 broke")],
        3,
        "rank 1 (pid 101, host h1) broke",
    ),
    "a crash of a library": (
        [ECHO, ended(1, -signal.SIGSEGV)],
        3,
        "rank 1 (pid 101, host h1) was killed by SIGSEGV while decoding (step 5): a crash of a library: the rank's log "
        "(--log_dir) has what it said last",
    ),
    "a file that was cut short": (
        [ECHO, ended(1, -signal.SIGBUS)],
        3,
        "rank 1 (pid 101, host h1) was killed by SIGBUS while decoding (step 5): a weight file was cut short while it "
        "was in use: weights stay in their files; or /dev/shm is full",
    ),
    "a signal without a name": (
        [BY_US, ended(1, -40)],
        3,
        "rank 1 (pid 101, host h1) was killed by signal 40 while decoding (step 5)",
    ),
    "exit 0 before the work was done": (
        [ECHO, ended(1, 0)],
        3,
        "rank 1 (pid 101, host h1) left early (exit 0) while decoding (step 5)",
    ),
    "exit 0 behind the work says nothing against a rank": (
        [ended(0, 0, position=Position(phase=ENDING)), said(ended(1, 3), "rank 1 lost contact", cause=False)],
        3,
        "rank 1 (pid 101, host h1) lost contact",
    ),
    "a rank that somebody stopped": (
        [ECHO, said(ended(1, 143), "stopped by SIGTERM", cause=False)],
        3,
        "rank 1 (pid 101, host h1) was stopped by SIGTERM while decoding (step 5)",
    ),
    "rank 0 that somebody stopped": (
        [
            said(ended(0, 143), "stopped by SIGTERM", cause=False),
            said(ended(1, 3), "rank 1 lost contact with another rank", cause=False),
        ],
        3,
        "rank 0 (pid 100, host h0) was stopped by SIGTERM while decoding (step 5)",
    ),
    "a rank that somebody stopped before it could say so": (
        [BY_US, ended(1, 143, position=Position())],
        3,
        "rank 1 (pid 101, host h1) was stopped by SIGTERM while starting",
    ),
    "one that gave up waiting for another": (
        [said(ended(0, 3), "rank 0 lost contact: Timed out", cause=False), ended(1, -9, at_s=None)],
        3,
        "rank 1 (pid 101, host h1) hangs while decoding (step 5); the others waited for it until they gave up: rank 0 "
        "lost contact: Timed out",
    ),
    "one that gave up waiting for a stopped rank": (
        [
            said(ended(0, 3), "rank 0 lost contact: Timed out", cause=False),
            replace(ended(1, -9, at_s=None, position=WAITING), state="T"),
        ],
        3,
        "rank 1 (pid 101, host h1) hangs while decoding (step 5, in all-gather number 87), stopped by a signal "
        "(SIGSTOP or Ctrl-Z); the others waited for it until they gave up: rank 0 lost contact: Timed out",
    ),
    "one that gave up while all others waited too": (
        [said(ended(0, 3), "rank 0 lost contact: Timed out", cause=False), ended(1, 143, None, WAITING)],
        3,
        "rank 0 (pid 100, host h0) lost contact: Timed out",
    ),
    "an exit code without a word": (
        [BY_US, ended(1, 77)],
        3,
        "rank 1 (pid 101, host h1) ended with exit code 77 and said no reason, while decoding (step 5)",
    ),
    "a host that says nothing of its ranks": ([BY_US], 3, "a rank failed, and its host did not say which, or why"),
}


@pytest.mark.parametrize(("ends", "code", "text"), ENDS.values(), ids=ENDS)
def test_what_is_said(ends: Sequence[RankEnd], code: int, text: str) -> None:
    assert verdict_of(ends) == Verdict(code=code, text=text)


def test_when_the_reader_of_the_results_has_left_nothing_is_said() -> None:
    assert verdict_of([ended(0, 141), KILLED]) == Verdict(code=141)


def test_a_run_whose_rank_0_is_stopped_was_stopped() -> None:
    """By Ctrl-C twice in a chat, which rank 0 handles."""
    ends = [said(ended(0, 130), "stopped by SIGINT", cause=False), ended(1, -9, at_s=None)]
    assert verdict_of(ends) == Verdict(code=130, text="stopped by SIGINT", stopped=True)


def test_the_trace_of_a_fault_of_our_own_goes_along_where_it_was_not_seen() -> None:
    text = "rank 1 failed while decoding (step 5): KeyError: 'x' (a fault of shardrun's; please report it)"
    fault = replace(said(ended(1, 1), text), trace="Traceback ...\n")
    found = verdict_of([BY_US, fault])
    assert (found.code, found.trace) == (1, "Traceback ...\n")
    # Rank 0's stderr is the terminal's.
    assert verdict_of([replace(fault, rank=0)]).trace == ""


def test_a_rank_without_memory_on_its_device_asks_for_advice() -> None:
    assert verdict_of([said(ended(0, 3), "rank 0 is out of memory", no_memory=True)]).no_memory


def test_a_rank_that_the_kernel_killed_for_want_of_memory_says_so_with_figures() -> None:
    end = replace(
        KILLED,
        held_bytes=3_100_000_000,
        free_bytes=40_000_000,
        total_bytes=4_000_000_000,
        memory_of=LIMITED,
        memory_kills=1,
    )
    assert verdict_of([BY_US, end]) == Verdict(
        code=3,
        text="rank 1 (pid 101, host h1) was killed by SIGKILL while decoding (step 5): its control group's memory ran "
        f"out, and the kernel killed it (it held 3.1 GB, 0.04 of 4 GB of its control group's memory were free); {LESS}",
        no_memory=True,
    )


def test_a_hang_names_who_hangs_and_who_waits() -> None:
    ends = [BY_US, replace(ended(1, -9, at_s=None), state="S")]
    assert verdict_of(ends, Hang(ranks=(1,), silent_s=60.2, waiting=0)) == Verdict(
        code=3,
        text="rank 1 (pid 101, host h1) hangs while decoding (step 5), sleeping: no sign of life for 60 s; rank 0 "
        "waits for it while decoding (step 5, in all-gather number 87); it was ended (--heartbeat_s says how long such "
        "silence may last)",
    )


def test_many_that_hang_are_counted_behind_the_first_four() -> None:
    ends = [BY_US, *(ended(rank, -9, at_s=None) for rank in range(1, 8))]
    text = verdict_of(ends, Hang(ranks=tuple(range(1, 8)), silent_s=60.0, waiting=0)).text
    assert "rank 4 (pid 104, host h4) hangs" in text
    assert "rank 5" not in text
    assert "; and 3 more: no sign of life for 60 s; rank 0 waits for them" in text


def test_where_all_hang_alike_nobody_is_said_to_wait() -> None:
    ends = [replace(BY_US, rank=rank) for rank in (0, 1)]
    text = verdict_of(ends, Hang(ranks=(0, 1), silent_s=300.0, waiting=None)).text
    assert "waits for" not in text
    assert "no sign of life for 300 s" in text


def test_how_a_rank_ended_crosses_from_host_to_host() -> None:
    for end in (KILLED, ECHO):
        assert RankEnd.from_json(json.loads(json.dumps(end.as_json()))) == end
