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
from launcher.ranks.forwarding import FOR_THE_LOG
from parallel.environment import Environment
from parallel.errors import AbsentError, PeerFailedError, RefusedError, ShardrunError, UnreachedError
from parallel.position import position

if TYPE_CHECKING:
    from parallel.world import World

log = logging.getLogger("shardrun")
_PLACE = re.compile(r"^\[\S+:\d+\] |\. This may indicate.*|\. GLHF.*")
# How torch's allocators say it, on a GPU and on a CPU.
_NO_MEMORY = ("out of memory", "can't allocate memory")
LESS = "fewer sequences (--max_batch_size), a shorter --max_seq_len, --dtype bfloat16 or more ranks take less"
# A device that failed, which no retry of the same process mends.
_DEVICE = ("CUDA error", "cudaError", "ECC", "device is lost", "GPU is lost")

# How torch, gloo and NCCL say that another rank has gone, or does not answer.
_LOST_PEER = (
    "connection closed by peer",
    "connection reset by peer",
    "broken pipe",
    "gloo",
    "nccl",
    "timed out waiting",
    "wait timeout",
)

# What NCCL says of how it was asked, and not of another rank.
_MISUSED = ("invalid usage", "invalid argument", "duplicate gpu")

# How long a rank that is not to speak waits for rank 0 to have spoken.
_SILENT_S = 3.0
_NO_WORLD_SILENT_S = 1.0
OUR_FAULT = 1
RANK_FAILED = 3
# 128 + SIGPIPE: whoever read our stdout has left, as `head` does.
READER_GONE = 141
# Exit codes above this: stopped by a signal.
SIGNALLED = 128
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

    @property
    def text(self) -> str:
        return f"stopped by {signal.Signals(self.number).name}"


def stop_on_signals() -> None:
    """Turn SIGTERM, SIGHUP and SIGINT into `Stopped`, once; later ones end the process at once."""

    def stop(number: int, _frame: object) -> None:
        for known in stop_signals():
            signal.signal(known, lambda again, _: os._exit(128 + again))
        raise Stopped(number)

    for number in stop_signals():
        signal.signal(number, stop)


def stop_patiently(spared: Callable[[], bool]) -> None:
    """Turn the first of these signals into `Stopped` and ignore later ones: for the launcher, whose end takes a few
    seconds at most. Clusters send SIGTERM to every process, and more than once.

    `spared`: asked at Ctrl-C; where it says true, that is for somebody else.
    """

    def stop(number: int, _frame: object) -> None:
        if number == signal.SIGINT and spared():
            return
        for known in stop_signals():
            signal.signal(known, _ignore)
        raise Stopped(number)

    for number in stop_signals():
        signal.signal(number, stop)


def _ignore(number: int, frame: object) -> None:
    """Not SIG_IGN: that would be inherited by what is started."""


def take_ctrl_c(env: Environment) -> None:
    """Tell our supervisor, where there is one, that from here on rank 0 handles Ctrl-C and it should not."""
    if env.run_folder:
        (Path(env.run_folder) / _CTRL_C_TAKEN).touch()


def ctrl_c_is_taken(folder: Path) -> bool:
    return (folder / _CTRL_C_TAKEN).exists()


def end_at_once(stopped: Stopped, env: Environment) -> NoReturn:
    """End this process from any of its threads, whatever the others hang in, with the word for it."""
    failure = Failure.of(stopped, env.rank)
    with contextlib.suppress(OSError):
        if env.run_folder:
            failure.write(Path(env.run_folder))
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
    # What it was doing: a phase, its step, its collective.
    doing: str = ""
    # For want of memory: the launcher then adds what would fit.
    no_memory: bool = False

    @classmethod
    def of(cls, error: BaseException, rank: int) -> "Failure":
        code, text, cause, doing = OUR_FAULT, "", True, str(position.now())
        no_memory = isinstance(error, MemoryError) or any(sign in str(error).lower() for sign in _NO_MEMORY)
        if isinstance(error, ShardrunError):
            code, text, cause = error.exit_code, str(error), not isinstance(error, (PeerFailedError, AbsentError))
        elif isinstance(error, Stopped):
            code, text, cause = error.exit_code, error.text, False
        elif no_memory:
            code, text = RANK_FAILED, f"rank {rank} is out of memory while {doing}: {_first_line(error)}; {LESS}"
        elif lost_peer(error):
            code, cause = RANK_FAILED, False
            # torch puts the place in its source in front.
            text = f"rank {rank} lost contact with another rank while {doing}: {_PLACE.sub('', _first_line(error))}"
        elif isinstance(error, RuntimeError) and any(sign in str(error) for sign in _DEVICE):
            code = RANK_FAILED
            text = f"rank {rank}'s GPU failed while {doing}: {_first_line(error)}; see nvidia-smi and dmesg (Xid)"
        else:
            text = (
                f"rank {rank} failed while {doing}: {type(error).__name__}: {_first_line(error)} (a fault of "
                "shardrun's; please report it)"
            )
        return cls(
            rank=rank,
            exit_code=code,
            text=text,
            cause=cause,
            time_s=time.time(),
            doing=doing,
            no_memory=no_memory and code == RANK_FAILED,
        )

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
    text = str(error).lower()
    if not isinstance(error, RuntimeError) or any(sign in text for sign in _MISUSED):
        return False
    return "DistError" in names or any(sign in text for sign in _LOST_PEER)


def report_rank(error: BaseException, env: Environment, world: "World | None") -> int:
    """Report a rank's failure and return its exit code.

    Under our own supervisor it is written down for it. Otherwise an error that all ranks share is said by
    rank 0, while the others wait until it has been; any other by the rank that claims it first.
    """
    failure = Failure.of(error, env.rank)
    log.debug("rank %d ends: %s", env.rank, failure.text, exc_info=error)
    if failure.exit_code == OUR_FAULT:
        traceback.print_exception(error)
    elif failure.exit_code == RANK_FAILED and env.run_folder and env.rank == 0:
        _trace_to_log(error)
    if env.run_folder:
        try:
            failure.write(Path(env.run_folder))
        except OSError:  # the disk is full: then the rank's own log, and the terminal, have it
            print_error(failure.text)
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


def _trace_to_log(error: BaseException) -> None:
    """Rank 0's stderr is for the terminal too, but for lines that begin so."""
    lines = "".join(traceback.format_exception(error)).splitlines()
    sys.stderr.write("".join(f"{FOR_THE_LOG}{line}\n" for line in lines))


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
