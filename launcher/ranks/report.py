"""How a process ends: one message for all ranks, and an exit code.

0 done, 2 refused, 3 a rank failed while running, 1 a fault of our own, 128 + n stopped by signal n.
"""

import contextlib
import json
import logging
import os
import re
import signal
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from launcher.console import say
from launcher.guard import stop_signals
from parallel.environment import Environment
from parallel.errors import PeerFailedError, RefusedError, ShardrunError, UnreachedError

if TYPE_CHECKING:
    from parallel.world import World

log = logging.getLogger("shardrun")
_PLACE = re.compile(r"^\[\S+:\d+\] |\. This may indicate.*|\. GLHF.*")
# How torch's allocators say it, on a GPU and on a CPU.
_NO_MEMORY = ("out of memory", "can't allocate memory")

# How long a rank that is not to speak waits for rank 0 to have spoken.
_SILENT_S = 3.0
_NO_WORLD_SILENT_S = 1.0
OUR_FAULT = 1
RANK_FAILED = 3
# 128 + SIGPIPE: whoever read our stdout has left, as `head` does.
READER_GONE = 141
# A file beside the ranks' failures: Ctrl-C is rank 0's to handle.
_CTRL_C_TAKEN = "ctrl-c-taken"


class Stopped(BaseException):
    """A signal asked this process to stop."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number

    @property
    def exit_code(self) -> int:
        return 128 + self.number


def stop_on_signals(spared: Callable[[int], bool] = lambda _: False) -> None:
    """Turn SIGTERM, SIGHUP and SIGINT into `Stopped`, once; later ones end the process at once.

    `spared`: asked at the first signal; where it says true, that one is for somebody else.
    """

    def stop(number: int, _frame: object) -> None:
        if spared(number):
            return
        for known in stop_signals():
            signal.signal(known, lambda again, _: os._exit(128 + again))
        raise Stopped(number)

    for number in stop_signals():
        signal.signal(number, stop)


def take_ctrl_c(env: Environment) -> None:
    """Tell our supervisor, where there is one, that from here on rank 0 handles Ctrl-C and it should not."""
    if env.rendezvous_file:
        (Path(env.rendezvous_file).parent / _CTRL_C_TAKEN).touch()


def ctrl_c_is_taken(folder: Path) -> bool:
    return (folder / _CTRL_C_TAKEN).exists()


def end_at_once(stopped: Stopped, env: Environment) -> NoReturn:
    """End this process from any of its threads, whatever the others hang in, with the word for it."""
    failure = Failure.of(stopped, env.rank)
    with contextlib.suppress(OSError):
        if env.rendezvous_file:
            failure.write(Path(env.rendezvous_file).parent)
        else:
            os.write(2, f"shardrun: {failure.text}\n".encode())
    os._exit(failure.exit_code)


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """What a rank writes for its supervisor when it fails."""

    rank: int
    exit_code: int
    text: str
    # False for what is only the echo of another rank's end, such as a closed connection.
    cause: bool
    time_s: float

    @classmethod
    def of(cls, error: BaseException, rank: int) -> "Failure":
        code, text, cause = OUR_FAULT, "", True
        if isinstance(error, ShardrunError):
            code, text, cause = error.exit_code, str(error), not isinstance(error, PeerFailedError)
        elif isinstance(error, Stopped):
            code, text, cause = error.exit_code, f"stopped by {signal.Signals(error.number).name}", False
        elif lost_peer(error):
            code, cause = RANK_FAILED, False
            # torch puts the place in its source in front.
            text = f"rank {rank} lost contact with another rank: {_PLACE.sub('', _first_line(error))}"
        elif isinstance(error, MemoryError) or any(sign in str(error).lower() for sign in _NO_MEMORY):
            code, text = RANK_FAILED, f"rank {rank} is out of memory: {_first_line(error)}"
        else:
            text = (
                f"rank {rank}: {type(error).__name__}: {_first_line(error)} (a fault of shardrun's; please report it)"
            )
        return cls(rank=rank, exit_code=code, text=text, cause=cause, time_s=time.time())

    def write(self, folder: Path) -> None:
        partial = folder / f".failure-{self.rank}.partial"
        partial.write_text(json.dumps(asdict(self)), encoding="utf-8")
        partial.replace(folder / f"failure-{self.rank}.json")

    @classmethod
    def read_all(cls, folder: Path) -> list["Failure"]:
        return [cls(**json.loads(path.read_text(encoding="utf-8"))) for path in sorted(folder.glob("failure-*.json"))]


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), "") or type(error).__name__


def lost_peer(error: BaseException) -> bool:
    """True for what a collective or the store raises when another rank has gone."""
    names = {kind.__name__ for kind in type(error).__mro__}
    text = str(error)
    signs = (
        "Connection closed by peer",
        "Connection reset by peer",
        "Broken pipe",
        "gloo",
        "NCCL",
        "Timed out waiting",
    )
    return bool(names & {"DistError"}) or (isinstance(error, RuntimeError) and any(sign in text for sign in signs))


def report_rank(error: BaseException, env: Environment, world: "World | None") -> int:
    """Report a rank's failure and return its exit code.

    Under our own supervisor it is written down for it. Otherwise an error that all ranks share is said by
    rank 0, while the others wait until it has been; any other by the rank that claims it first.
    """
    failure = Failure.of(error, env.rank)
    log.debug("rank %d ends: %s", env.rank, failure.text, exc_info=error)
    if failure.exit_code == OUR_FAULT:
        traceback.print_exception(error)
    if env.rendezvous_file:
        failure.write(Path(env.rendezvous_file).parent)
    elif _may_speak(error, env, world):
        if isinstance(error, Stopped):
            say(failure.text)
        elif failure.exit_code != OUR_FAULT:
            print_error(failure.text)
        if world is not None and world.store is not None:
            with contextlib.suppress(RuntimeError):  # the store may have gone with the rank that served it
                world.store.set("reported", "1")
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:  # it was closed before we were started
            stream.flush()
    return failure.exit_code


def _may_speak(error: BaseException, env: Environment, world: "World | None") -> bool:
    if env.world_size == 1:
        return True
    if world is None or world.store is None:
        # Every rank has the same flags, so rank 0 has the same error; be silent a moment, not the first to leave.
        # Another machine's first rank speaks too: its files and flags may differ from those of rank 0's.
        elsewhere = env.rank >= env.local_world_size and env.local_rank == 0
        speaks = env.rank == 0 or elsewhere or isinstance(error, UnreachedError)
        if not speaks:
            time.sleep(_NO_WORLD_SILENT_S)
        return speaks
    try:
        if isinstance(error, RefusedError):
            if env.rank:
                _wait(world, "reported")
            return env.rank == 0
        return bool(world.store.add("failures", 1) == 1)
    except Exception:  # the store went with the rank that held it: speak rather than be silent
        return True


def _wait(world: "World", key: str) -> None:
    from parallel.rendezvous import wait_for  # torch is loaded where there is a world

    assert world.store is not None
    wait_for(world.store, key, _SILENT_S)


def print_error(text: str) -> None:
    """The message as the user reads it."""
    say(f"error: {text}" if "\n" not in text else f"error:\n{text}")
