"""Runs that are stopped from outside (FAULTS C67, C68, C72 to C74): the exit code, the words, and nothing left."""

import os
import re
import signal
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.checkpoints import TINY
from tests.end_to_end.command import Outcome, Running, assert_one_message, complete, snapshot
from tests.end_to_end.drills import (
    ENDED_S,
    ENDLESS,
    PROMPTS,
    Healthy,
    at_work,
    hit,
    two_ranks,
    wait_for_ranks,
)

STOPS = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]


def assert_stopped(outcome: Outcome, number: signal.Signals, err_before: str, limit_s: float, since: float) -> None:
    """Exit code 128 + n, one line at most since then, nothing left."""
    assert outcome.code == 128 + number, (outcome.code, outcome.err)
    said = outcome.err.removeprefix(err_before)
    assert "Traceback" not in said, said
    assert len(said.splitlines()) <= 1, said
    assert outcome.left == []
    assert time.monotonic() - since < limit_s


@pytest.mark.parametrize("number", STOPS)
def test_one_process_that_is_told_to_stop_stops_with_a_line_at_most(
    number: signal.Signals, healthy: Healthy, case: Path
) -> None:
    before = snapshot(case)
    with at_work(healthy(1, TINY), case) as running:
        err, since = running.err, time.monotonic()
        os.kill(running.process.pid, number)
        assert_stopped(running.end(), number, err, 6, since)
    assert snapshot(case) == before


@pytest.mark.parametrize("library", ["_multiarray_umath", "libtorch_cpu", "_sentencepiece"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_one_process_that_is_told_to_stop_while_it_loads_a_library_stops(
    number: signal.Signals, library: str, healthy: Healthy, case: Path
) -> None:
    before = snapshot(case)
    with Running(complete(healthy(1, TINY), *ENDLESS, prompts=PROMPTS), case) as running:
        maps, since = Path(f"/proc/{running.process.pid}/maps"), time.monotonic()
        while library not in maps.read_text():
            assert running.process.poll() is None, running.err
            assert time.monotonic() - since < 20
            time.sleep(0.001)
        since = time.monotonic()
        os.kill(running.process.pid, number)
        outcome = running.end(8)
    # Before our handlers stand, the system may end the process; a shell shows 128 + n for that too.
    assert outcome.code in (128 + number, -number), (outcome.code, outcome.err)
    assert "Traceback" not in outcome.err, outcome.err
    assert len(outcome.err.splitlines()) <= 1, outcome.err
    assert outcome.left == []
    assert time.monotonic() - since < 6
    assert snapshot(case) == before


@pytest.mark.parametrize("whole_group", [True, False], ids=["C73_ctrl_c_in_a_terminal", "C72_signal_to_the_launcher"])
def test_two_ranks_whose_launcher_is_told_to_stop_stop_with_a_line_at_most(
    whole_group: bool, healthy: Healthy, case: Path
) -> None:
    number = signal.SIGINT if whole_group else signal.SIGTERM
    before = snapshot(case)
    with at_work(two_ranks(healthy), case, "--nproc_per_node", "2") as running:
        assert sorted(running.ranks()) == [0, 1]
        err, since = running.err, time.monotonic()
        running.fault_s = since
        # A terminal sends Ctrl-C to every process of the group.
        (os.killpg if whole_group else os.kill)(running.process.pid, number)
        assert_stopped(running.end(), number, err, 6, since)
    assert snapshot(case) == before


def test_C72_two_ranks_of_which_one_is_stuck_stop_in_time(healthy: Healthy, case: Path) -> None:
    before = snapshot(case)
    with at_work(two_ranks(healthy), case, "--nproc_per_node", "2") as running:
        os.kill(running.ranks()[1], signal.SIGSTOP)
        time.sleep(0.3)
        err, since = running.err, time.monotonic()
        hit(running, running.process.pid, signal.SIGTERM)
        assert_stopped(running.end(), signal.SIGTERM, err, 6, since)
    assert snapshot(case) == before


def test_C74_no_rank_outlives_a_launcher_that_is_killed(healthy: Healthy, case: Path) -> None:
    with at_work(two_ranks(healthy), case, "--nproc_per_node", "2") as running:
        assert len(running.members()) == 3
        hit(running, running.process.pid)
        outcome = running.end(grace_s=2.0)
    assert outcome.code == -signal.SIGKILL
    assert outcome.left == []


@pytest.mark.parametrize("rank", [0, 1])
def test_C68_a_rank_that_is_killed_in_a_collective_is_named_with_its_signal_and_its_step(
    rank: int, healthy: Healthy, case: Path
) -> None:
    before = snapshot(case)
    with at_work(two_ranks(healthy), case, "--nproc_per_node", "2") as running:
        pid = running.ranks()[rank]
        hit(running, pid)
        outcome = running.end()
        seconds = time.monotonic() - running.fault_s
    assert_rank_killed(outcome, rank, pid, r"decoding \(step \d+(, in (all-\w+|broadcast) number \d+)?\)")
    assert seconds < ENDED_S
    assert snapshot(case) == before


def test_C72_a_rank_that_somebody_asks_to_stop_is_named_and_not_the_one_that_misses_it(
    healthy: Healthy, case: Path
) -> None:
    with at_work(two_ranks(healthy), case, "--nproc_per_node", "2") as running:
        pid = running.ranks()[1]
        hit(running, pid, signal.SIGTERM)
        outcome = running.end()
    assert (outcome.code, outcome.left) == (3, [])
    (error,) = outcome.errors
    assert re.match(rf"shardrun: error: rank 1 \(pid {pid}, host \S+\) was stopped by SIGTERM while decoding", error)


def test_C67_a_rank_that_is_killed_before_it_has_met_the_others_is_named_with_its_signal(
    healthy: Healthy, case: Path
) -> None:
    before = snapshot(case)
    with Running(complete(two_ranks(healthy), *ENDLESS, "--nproc_per_node", "2"), case) as running:
        pid = wait_for_ranks(running)[1]
        hit(running, pid)
        outcome = running.end()
        seconds = time.monotonic() - running.fault_s
    assert_rank_killed(outcome, 1, pid, "starting")
    assert seconds < ENDED_S
    assert snapshot(case) == before


def assert_rank_killed(outcome: Outcome, rank: int, pid: int, place: str) -> None:
    assert outcome.code == 3, (outcome.code, outcome.err)
    assert_one_message(outcome, alone=False)
    who = rf"shardrun: error: rank {rank} \(pid {pid}, host \S+\)"
    assert re.match(
        rf"{who} was killed by SIGKILL while {place}: by somebody, or because .* see dmesg", outcome.errors[0]
    )
    assert outcome.left == []


@pytest.mark.drill
@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_run_can_be_stopped_at_any_moment_without_a_trace(
    number: signal.Signals, ranks: int, healthy: Healthy, case: Path
) -> None:
    before = snapshot(case)
    wrong: list[Sequence[object]] = []
    for tenths in (*range(1, 10), *range(10, 31, 2)):
        flags = complete(healthy(ranks, TINY), *ENDLESS, "--nproc_per_node", str(ranks), prompts=PROMPTS)
        with Running(flags, case) as running:
            time.sleep(tenths / 10)
            err = running.err
            os.killpg(running.process.pid, number)
            try:
                outcome = running.end(8)
            except AssertionError:
                wrong.append((tenths / 10, "goes on"))
                continue
        said = outcome.err.removeprefix(err).splitlines()
        # Before our handlers stand, the system ends the process; a shell shows 128 + n for that too.
        right = outcome.code in (128 + number, -number) and len(said) <= 1 and not outcome.left
        if not right or "Traceback" in outcome.err or snapshot(case) != before:
            wrong.append((tenths / 10, outcome.code, said, outcome.left))
    assert wrong == []
