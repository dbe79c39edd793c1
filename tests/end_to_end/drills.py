"""Faults on purpose (`--inject`), and what they have in common: when they came, how long the end took, what is left."""

import os
import re
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.checkpoints import TINY, Sizes
from tests.end_to_end.command import Outcome, Running, Said, assert_one_message, assert_says, complete, snapshot

# The fixture `healthy`: a healthy folder by MP and sizes.
Healthy = Callable[[int, Sizes], Path]
# A run that lasts until it is stopped, and says by its first output that it is at work.
ENDLESS = ("--max_seq_len", "60000", "--max_gen_len", "60000", "--eos_ids", "[]", "--stream", "--echo")
PROMPTS = '["the old boat lay on the sand"]'
# For the report and the end of all processes behind a fault.
ENDED_S = 5.0
_COMES_S = 40.0


@contextmanager
def at_work(folder: Path, case: Path, *flags: str) -> Iterator[Running]:
    """A run that has begun to answer and will not end by itself."""
    with Running(complete(folder, *ENDLESS, *flags, prompts=PROMPTS), case) as running:
        wait_for_answer(running)
        yield running


def wait_for_answer(running: Running) -> None:
    """Wait until more than the prompt stands on stdout: it decodes."""
    running.wait_for_output()
    deadline = time.monotonic() + _COMES_S
    while len(running.out) < len(PROMPTS) + 10:
        assert running.process.poll() is None, running.err
        assert time.monotonic() < deadline, running.err
        time.sleep(0.01)


def fault_comes(running: Running) -> None:
    """Wait until an injected fault says that it comes now; from here on its seconds are counted."""
    wait_for_words(running, "inject: ", "comes now")


def wait_for_words(running: Running, *words: str, limit_s: float = _COMES_S) -> None:
    """Wait until a line of stderr holds all of the words."""
    deadline = time.monotonic() + limit_s
    while not any(all(word in line for word in words) for line in running.err.splitlines()):
        assert running.process.poll() is None, f"ended with {running.process.returncode} before:\n{running.err}"
        assert time.monotonic() < deadline, f"{words} not said within {limit_s} s:\n{running.err}"
        time.sleep(0.01)
    running.fault_s = time.monotonic()


def hit(running: Running, pid: int, number: signal.Signals = signal.SIGKILL) -> None:
    """Send a signal to a process of the run; from here on its seconds are counted."""
    running.fault_s = time.monotonic()
    os.kill(pid, number)


@dataclass(frozen=True, kw_only=True)
class Drill:
    """How a run with a fault on purpose ended, and how many seconds behind the fault."""

    outcome: Outcome
    since_fault_s: float

    @property
    def message(self) -> str:
        """The error as the user reads it, without what differs from run to run."""
        assert len(self.outcome.errors) == 1, self.outcome.err
        text = self.outcome.errors[0].removeprefix("shardrun: error: ")
        return re.sub(r"\(pid \d+, host [^)]+\)", "(pid, host)", text)


def drill(folder: Path, case: Path, fault: str, *flags: str, ranks: int = 2) -> Drill:
    """Run `complete` with a fault to its end."""
    asked = complete(folder, "--nproc_per_node", str(ranks), "--max_gen_len", "20", "--inject", fault, *flags)
    with Running(asked, case) as running:
        fault_comes(running)
        outcome = running.end()
        return Drill(outcome=outcome, since_fault_s=time.monotonic() - running.fault_s)


def assert_failed(found: Drill, *says: Said, limit_s: float = ENDED_S) -> None:
    """Exit code 3, one message that says all of `says`, in time, nothing printed and no process left."""
    assert found.outcome.code == 3, (found.outcome.code, found.outcome.err)
    assert_one_message(found.outcome, alone=False)
    assert_says(found.message, says)
    assert found.outcome.left == []
    assert found.since_fault_s < limit_s, found.since_fault_s


@contextmanager
def untouched(case: Path) -> Iterator[None]:
    """What stands in the folder before and behind the body is the same."""
    before = snapshot(case)
    yield
    assert snapshot(case) == before


def two_ranks(healthy: Healthy) -> Path:
    return healthy(2, TINY)


def wait_for_ranks(running: Running, ranks: Sequence[int] = (0, 1), limit_s: float = 30.0) -> dict[int, int]:
    """Wait until these ranks have been started; their pids."""
    deadline = time.monotonic() + limit_s
    while sorted(found := running.ranks()) != list(ranks):
        assert running.process.poll() is None, running.err
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return found
