"""Runs that are stopped from outside (FAULTS C67, C68, C71 to C74): the exit code, the words, and nothing left."""

import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.checkpoints import TINY, Sizes
from tests.end_to_end.command import Outcome, Running, assert_one_message, assert_says, complete, snapshot

# A run that lasts until it is stopped, and says by its first output that it is at work.
ENDLESS = ("--max_seq_len", "60000", "--max_gen_len", "60000", "--eos_ids", "[]", "--stream", "--echo")
PROMPTS = '["the old boat lay on the sand"]'
STOPS = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]


@contextmanager
def at_work(folder: Path, case: Path, *flags: str) -> Iterator[Running]:
    with Running(complete(folder, *ENDLESS, *flags, prompts=PROMPTS), case) as running:
        running.wait_for_output()
        yield running


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
    number: signal.Signals, healthy: Callable[[int, Sizes], Path], case: Path
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
    number: signal.Signals, library: str, healthy: Callable[[int, Sizes], Path], case: Path
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
    whole_group: bool, healthy: Callable[[int, Sizes], Path], case: Path
) -> None:
    number = signal.SIGINT if whole_group else signal.SIGTERM
    before = snapshot(case)
    with at_work(healthy(2, TINY), case, "--nproc_per_node", "2") as running:
        assert sorted(running.ranks()) == [0, 1]
        err, since = running.err, time.monotonic()
        # A terminal sends Ctrl-C to every process of the group.
        (os.killpg if whole_group else os.kill)(running.process.pid, number)
        assert_stopped(running.end(), number, err, 6, since)
    assert snapshot(case) == before


def test_C72_two_ranks_of_which_one_is_stuck_stop_in_time(healthy: Callable[[int, Sizes], Path], case: Path) -> None:
    before = snapshot(case)
    with at_work(healthy(2, TINY), case, "--nproc_per_node", "2") as running:
        os.kill(running.ranks()[1], signal.SIGSTOP)
        time.sleep(0.3)
        err, since = running.err, time.monotonic()
        os.kill(running.process.pid, signal.SIGTERM)
        assert_stopped(running.end(), signal.SIGTERM, err, 6, since)
    assert snapshot(case) == before


def test_C74_no_rank_outlives_a_launcher_that_is_killed(healthy: Callable[[int, Sizes], Path], case: Path) -> None:
    with at_work(healthy(2, TINY), case, "--nproc_per_node", "2") as running:
        assert len(running.members()) == 3
        os.kill(running.process.pid, signal.SIGKILL)
        outcome = running.end(grace_s=2.0)
    assert outcome.code == -signal.SIGKILL
    assert outcome.left == []


def _kill_a_rank(running: Running, rank: int) -> tuple[Outcome, float]:
    pid, since = running.ranks()[rank], time.monotonic()
    os.kill(pid, signal.SIGKILL)
    return running.end(), time.monotonic() - since


@pytest.mark.parametrize("rank", [0, 1])
def test_C68_a_rank_that_is_killed_at_work_is_named_with_its_signal(
    rank: int, healthy: Callable[[int, Sizes], Path], case: Path
) -> None:
    before = snapshot(case)
    with at_work(healthy(2, TINY), case, "--nproc_per_node", "2") as running:
        outcome, seconds = _kill_a_rank(running, rank)
    assert_rank_killed(outcome, rank)
    assert seconds < 5
    assert snapshot(case) == before


def test_a_rank_that_somebody_asks_to_stop_is_named_and_not_the_one_that_misses_it(
    healthy: Callable[[int, Sizes], Path], case: Path
) -> None:
    with at_work(healthy(2, TINY), case, "--nproc_per_node", "2") as running:
        os.kill(running.ranks()[1], signal.SIGTERM)
        outcome = running.end()
    assert (outcome.code, outcome.left) == (3, [])
    assert outcome.errors == ["shardrun: error: rank 1 was stopped by SIGTERM"]


def test_C67_a_rank_that_is_killed_before_it_has_met_the_others_is_named_with_its_signal(
    healthy: Callable[[int, Sizes], Path], case: Path
) -> None:
    before = snapshot(case)
    with Running(complete(healthy(2, TINY), *ENDLESS, "--nproc_per_node", "2"), case) as running:
        deadline = time.monotonic() + 20
        while sorted(running.ranks()) != [0, 1]:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        outcome, seconds = _kill_a_rank(running, 1)
    assert_rank_killed(outcome, 1)
    assert seconds < 5
    assert snapshot(case) == before


def assert_rank_killed(outcome: Outcome, rank: int) -> None:
    assert outcome.code == 3, (outcome.code, outcome.err)
    assert_one_message(outcome, alone=False)
    assert_says(outcome.errors[0], [f"rank {rank}", "killed", "SIGKILL", "memory"])
    assert outcome.left == []


@pytest.mark.drill
@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_run_can_be_stopped_at_any_moment_without_a_trace(
    number: signal.Signals, ranks: int, healthy: Callable[[int, Sizes], Path], case: Path
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
