"""Runs that start again after a failure (`--max_restarts`): their file of answers, their logs, and where they stop."""

import json
import os
import signal
import time
from pathlib import Path

import pytest

from tests.end_to_end.command import Outcome, Running, assert_done, assert_refused, complete, run
from tests.end_to_end.drills import Healthy, fault_comes, two_ranks, wait_for_ranks, wait_for_words

PROMPTS = json.dumps([f"the {word} boat lay on the sand" for word in ("old", "red", "new", "grey", "long", "last")])
# A prompt at a time: some are answered when the fault comes.
FLAGS = ("--nproc_per_node", "2", "--max_gen_len", "6", "--max_batch_size", "1", "--output", "answers.jsonl")


def batch(folder: Path, *flags: str) -> list[str]:
    return complete(folder, *FLAGS, *flags, prompts=PROMPTS)


@pytest.fixture(scope="module")
def whole(healthy: Healthy, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The answers of a run that nothing interrupts."""
    case = tmp_path_factory.mktemp("whole")
    assert_done(run(batch(two_ranks(healthy)), case))
    return (case / "answers.jsonl").read_bytes()


def restarts(outcome: Outcome) -> list[str]:
    return [line for line in outcome.err.splitlines() if "all ranks are started again" in line]


def test_a_run_that_starts_again_writes_the_same_answers_as_one_that_nothing_interrupts(
    whole: bytes, healthy: Healthy, case: Path
) -> None:
    # The second prompt's answer is at work when it is killed, for each counts its own steps.
    fault = "slow:rank=0,seconds=0.1,step=4;kill:rank=1,step=5"
    outcome = run(batch(two_ranks(healthy), "--inject", fault, "--max_restarts", "1", "--log_dir", "logs"), case)
    assert_done(outcome)
    assert (case / "answers.jsonl").read_bytes() == whole
    (line,) = restarts(outcome)
    assert line.startswith("shardrun: rank 1 (pid ")
    assert "was killed by SIGKILL while decoding (step 5)" in line
    assert line.endswith("all ranks are started again (1 of 1 times)")
    (logs,) = (case / "logs").iterdir()
    assert sorted(path.name for path in logs.iterdir()) == ["rank0.1.log", "rank0.log", "rank1.1.log", "rank1.log"]
    assert "inject: kill comes now" in (logs / "rank1.log").read_text()
    assert "inject: kill comes now" not in (logs / "rank1.1.log").read_text()
    assert sorted(path.name for path in case.iterdir()) == ["answers.jsonl", "logs", "tmp"]
    assert not list((case / "tmp").iterdir())


def test_when_the_restarts_are_used_up_the_last_failure_is_told(whole: bytes, healthy: Healthy, case: Path) -> None:
    fault = "raise:rank=1,step=3;exit:rank=0,step=4,attempt=1"
    outcome = run(batch(two_ranks(healthy), "--inject", fault, "--max_restarts", "1"), case)
    assert (outcome.code, outcome.left) == (3, [])
    assert len(restarts(outcome)) == 1
    (error,) = outcome.errors
    assert "rank 0 (pid " in error
    assert error.endswith("left early (exit 0) while decoding (step 4)")
    # What was answered is kept: somebody may go on with it by hand (--resume).
    kept = (case / "answers.jsonl").read_bytes()
    assert whole.startswith(kept)
    assert (case / "answers.jsonl.run").exists()


def wait_for_answers(running: Running, path: Path, count: int) -> None:
    while not path.exists() or path.read_bytes().count(b"\n") < count:
        assert running.process.poll() is None, running.err
        time.sleep(0.01)


@pytest.mark.drill
@pytest.mark.parametrize("killed", range(4))
def test_whatever_answer_is_at_work_the_file_is_the_same(
    killed: int, whole: bytes, healthy: Healthy, case: Path
) -> None:
    """By hand, since a fault waits for a step and not for a prompt."""
    slow = "slow:rank=0,seconds=0.05;slow:rank=0,seconds=0.05,attempt=1"
    flags = ("--inject", slow, "--max_restarts", "2")
    with Running(batch(two_ranks(healthy), *flags), case) as running:
        for attempt in range(2):
            wait_for_answers(running, case / "answers.jsonl", killed + attempt)
            os.kill(wait_for_ranks(running)[attempt], signal.SIGKILL)
            wait_for_words(running, f"({attempt + 1} of 2 times)")
        outcome = running.end()
    assert_done(outcome)
    assert (case / "answers.jsonl").read_bytes() == whole


def test_C75_what_is_refused_for_want_of_memory_is_not_tried_again(healthy: Healthy, case: Path) -> None:
    """A refusal that only the ranks can find: the KV cache of more tokens than any host has room for."""
    # 256 bytes a token: twice of what this host has in all.
    count = 2 * os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // (256 * 2**20) + 1
    huge = ("--max_seq_len", "1048576", "--max_gen_len", "1048000", "--max_batch_size", str(count))
    (case / "many.txt").write_text("the old boat\n" * count)
    flags = [*complete(two_ranks(healthy), *FLAGS[:2], *huge, "--prompts", "@many.txt"), "--output", "a.jsonl"]
    outcome = run([*flags, "--max_restarts", "3"], case)
    assert_refused(outcome, ["the KV cache of this batch", "bytes", "are free"], 20.0, alone=False)
    assert restarts(outcome) == []


def test_without_a_file_of_answers_there_are_no_restarts(healthy: Healthy, case: Path) -> None:
    outcome = run(complete(two_ranks(healthy), "--nproc_per_node", "2", "--max_restarts", "1"), case)
    assert_refused(outcome, ["--max_restarts is 1", "there is no --output", "answers that were printed"])


def test_a_run_that_is_stopped_is_not_started_again(healthy: Healthy, case: Path) -> None:
    flags = ("--inject", "slow:rank=0,seconds=0.3", "--max_restarts", "3")
    with Running(batch(two_ranks(healthy), *flags), case) as running:
        fault_comes(running)
        os.kill(running.process.pid, signal.SIGTERM)
        outcome = running.end()
    assert (outcome.code, outcome.left) == (128 + signal.SIGTERM, [])
    assert restarts(outcome) == []
    assert outcome.err.splitlines()[-1] == "shardrun: stopped by SIGTERM"
