"""What may take its time: nobody is said to hang who does not. The heartbeat is far shorter here than anybody's."""

import os
import signal
import sys
import time
from pathlib import Path

import pytest

from tests.end_to_end.command import Running, assert_done, complete, run
from tests.end_to_end.drills import (
    ENDLESS,
    PROMPTS,
    Healthy,
    assert_failed,
    at_work,
    drill,
    two_ranks,
    wait_for_words,
)

HEARTBEAT = ("--heartbeat_s", "3")


def assert_still_at_work(running: Running) -> None:
    """It goes on, and says nothing against anybody."""
    size, since = len(running.out), time.monotonic()
    while len(running.out) == size:
        assert running.process.poll() is None, running.err
        assert time.monotonic() - since < 20, running.err
        time.sleep(0.05)
    assert "error" not in running.err
    assert "sign of life" not in running.err


@pytest.mark.drill
def test_a_rank_that_is_slow_but_moves_is_waited_for(healthy: Healthy, case: Path) -> None:
    slow = ("--inject", "slow:rank=1,seconds=1.5", "--nproc_per_node", "2", "--max_gen_len", "5")
    assert_done(run(complete(two_ranks(healthy), *slow, *HEARTBEAT), case))


@pytest.mark.drill
def test_C70_a_rank_that_is_slower_than_the_heartbeat_is_named(healthy: Healthy, case: Path) -> None:
    found = drill(two_ranks(healthy), case, "slow:rank=1,step=2,seconds=30", *HEARTBEAT)
    assert_failed(
        found, "rank 1 (pid, host) hangs while decoding (step 2), sleeping: no sign of life for 3 s", limit_s=8
    )


@pytest.mark.drill
def test_a_run_that_is_stopped_as_a_whole_goes_on_when_it_may(healthy: Healthy, case: Path) -> None:
    """Ctrl-Z stops the launcher and its ranks; `fg` goes on with them."""
    with at_work(two_ranks(healthy), case, "--nproc_per_node", "2", *HEARTBEAT) as running:
        os.killpg(running.process.pid, signal.SIGSTOP)
        time.sleep(10)
        os.killpg(running.process.pid, signal.SIGCONT)
        assert_still_at_work(running)
        # As long again, for what might have been counted.
        time.sleep(4)
        assert_still_at_work(running)
        os.kill(running.process.pid, signal.SIGTERM)
        assert running.end().code == 128 + signal.SIGTERM


# Lets a command fill a small pipe, and stand still before it for more than two heartbeats; reads some, and leaves.
SLOW_READER = """
import fcntl, os, subprocess, sys, termios, time
reader, writer = os.pipe()
fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, 4096)
command = subprocess.Popen(sys.argv[1:], stdout=writer)
os.close(writer)
held, since = -1, time.monotonic()
while held <= 0 or time.monotonic() - since < 7:
    now = int.from_bytes(fcntl.ioctl(reader, termios.FIONREAD, bytes(4)), sys.byteorder)
    if now != held:
        held, since = now, time.monotonic()
    time.sleep(0.1)
with os.fdopen(reader, "rb") as pipe:
    sys.stdout.buffer.write(pipe.read(5000))
print("ended with", command.wait())
"""


@pytest.mark.drill
def test_who_reads_the_results_may_take_his_time(healthy: Healthy, case: Path) -> None:
    """As `less` does: the pipe is full, and rank 0 waits in the middle of a step."""
    asked = complete(two_ranks(healthy), *ENDLESS, "--nproc_per_node", "2", *HEARTBEAT, prompts=PROMPTS)
    with Running(asked, case, wrapper=(sys.executable, "-c", SLOW_READER)) as running:
        outcome = running.end()
    assert "error" not in outcome.err
    # The reader has left with what it wanted: 128 + SIGPIPE.
    assert outcome.out.endswith("ended with 141\n")
    assert outcome.left == []


@pytest.mark.drill
def test_many_requests_may_be_checked_for_long(healthy: Healthy, case: Path) -> None:
    """Seconds without a collective, or a word from any rank: more than all of them may be silent together."""
    (case / "many.txt").write_text("the old boat lay on the sand and waited for the tide\n" * 500_000)
    limits = ("--heartbeat_s", "2", "--timeout_s", "6", "--max_seq_len", "64")
    asked = complete(
        two_ranks(healthy), "--nproc_per_node", "2", "--prompts", "@many.txt", "--max_gen_len", "2", *limits
    )
    with Running(asked, case) as running:
        wait_for_words(running, "loaded", limit_s=120)
        assert "error" not in running.err
        os.kill(running.process.pid, signal.SIGTERM)
        assert running.end().code == 128 + signal.SIGTERM
