"""The pool itself: a failure is shown, nothing hangs, nothing is left."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from parallel import World
from parallel.collectives import all_reduce
from tests.distributed.pool import BODY_LIMIT_S, Pool, RankError

# A session that is killed while its rank is busy and reads no pipe.
KILLED_SESSION = """
import os, signal, sys, threading
from pathlib import Path
from tests.distributed.pool import Pool
from tests.distributed.test_pool import process_id, sleep

if __name__ == "__main__":
    pool = Pool(1, Path(sys.argv[1]))
    print(*pool.run(process_id), flush=True)
    threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGKILL)).start()
    pool.run(sleep, 60.0, limit_s=60.0)
"""


def fails_on_rank_1(world: World) -> None:
    if world.mesh.rank == 1:
        raise ValueError("rank 1 has a fault")
    all_reduce(torch.ones(1), world.mesh)


def ends_itself(world: World) -> None:
    os._exit(7)


def process_id(world: World) -> int:
    return os.getpid()


def sleep(world: World, seconds: float) -> None:
    time.sleep(seconds)


@pytest.mark.parametrize("ranks", [2], indirect=True, ids="{}-ranks".format)
def test_a_failure_shows_its_traceback_and_where_the_others_stand_and_the_pool_recovers(ranks: Pool) -> None:
    ranks.run(process_id)
    begin = time.monotonic()
    with pytest.raises(RankError, match="ValueError: rank 1 has a fault") as caught:
        ranks.run(fails_on_rank_1)
    assert time.monotonic() - begin < BODY_LIMIT_S / 2
    _, _, stack_of_rank_0 = str(caught.value).partition("rank 0 gave no answer; it stands at")
    assert "in all_reduce" in stack_of_rank_0
    assert len(set(ranks.run(process_id))) == 2


@pytest.mark.parametrize("ranks", [1], indirect=True, ids="{}-ranks".format)
def test_a_rank_that_ends_is_reported_with_its_exit_code(ranks: Pool) -> None:
    with pytest.raises(RankError, match="rank 0 ended with exit code 7"):
        ranks.run(ends_itself)


@pytest.mark.skipif(sys.platform != "linux", reason="looks for the process in /proc")
def test_a_busy_rank_ends_with_a_killed_session(tmp_path: Path) -> None:
    script = tmp_path / "session.py"
    script.write_text(KILLED_SESSION, encoding="utf-8")
    environ = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path)],
        env=environ,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    process = Path("/proc", done.stdout.strip())
    deadline = time.monotonic() + 5
    while alive(process) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not alive(process)


def alive(process: Path) -> bool:
    """False for a zombie too: nobody may be there to collect it."""
    try:
        return "State:\tZ" not in (process / "status").read_text(encoding="ascii", errors="replace")
    except OSError:
        return False
