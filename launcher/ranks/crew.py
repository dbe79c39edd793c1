"""The ranks of this host: started together, watched, and ended together.

Each is `python -m launcher ...` with torchrun's variables set. What a rank says goes to its log; some of it to the
terminal too (forwarding.py).
"""

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from launcher.guard import LAUNCHER_PID
from launcher.ranks.ends import RankEnd
from launcher.ranks.forwarding import forward, last_words, to_terminal
from launcher.ranks.host import held_bytes, host_name, read_memory, state_of
from launcher.ranks.report import Failure
from launcher.ranks.watch import Seen
from parallel.environment import RENDEZVOUS_FILE, RUN_FOLDER
from parallel.errors import RefusedError
from parallel.position import ENDING, Position, read_position

_POLL_S = 0.02
# After the first failure, for the other ranks to end by themselves with the same message.
_SETTLE_S = 0.5
_TERMINATE_S = 2.0
# For the kernel to end what was killed: a process that waits for a dead disk does not end.
_KILL_S = 2.0
POSITION = "position-{}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    """What is to be started on this host in one attempt."""

    arguments: Sequence[str]
    first_rank: int
    count: int
    world_size: int
    attempt: int = 0
    # The launcher's private folder, and where the ranks' logs stand.
    folder: Path
    logs: Path
    # Where rank 0's store listens; None: all ranks are here, and meet in a file.
    master: tuple[str, int] | None = None
    # Besides torchrun's, such as GLOO_SOCKET_IFNAME.
    variables: Mapping[str, str] = field(default_factory=dict)
    # Given the lines that are for the terminal.
    show: Callable[[bytes], None] = to_terminal

    def environ(self, number: int) -> dict[str, str]:
        """The variables of this host's rank `number`, counted from 0 here."""
        package_root = Path(__file__).resolve().parents[2]
        meeting = (
            {RENDEZVOUS_FILE: str(self.folder / f"store-{self.attempt}")}
            if self.master is None
            else {"MASTER_ADDR": self.master[0], "MASTER_PORT": str(self.master[1])}
        )
        return {
            **{name: value for name, value in os.environ.items() if not name.startswith("TORCHELASTIC_")},
            **self.variables,
            **meeting,
            "RANK": str(self.first_rank + number),
            "LOCAL_RANK": str(number),
            "WORLD_SIZE": str(self.world_size),
            "LOCAL_WORLD_SIZE": str(self.count),
            "TORCHELASTIC_RESTART_COUNT": str(self.attempt),
            RUN_FOLDER: str(self.folder),
            LAUNCHER_PID: str(os.getpid()),
            # The same files as this process's, wherever the workers' current folder is.
            "PYTHONPATH": os.pathsep.join(filter(None, [str(package_root), os.environ.get("PYTHONPATH")])),
        }

    def log(self, number: int) -> Path:
        again = f".{self.attempt}" if self.attempt else ""
        return self.logs / f"rank{self.first_rank + number}{again}.log"


@dataclass(slots=True)
class _Rank:
    number: int
    process: "subprocess.Popen[bytes]"
    log: Path
    forwarder: threading.Thread
    ended_s: float | None = None
    held_bytes: int = 0
    # The kernel's letter when the first rank failed.
    state: str = ""


class Crew:
    """The processes of one attempt. `end` may be called at any time, and again."""

    def __init__(self, launch: Launch) -> None:
        self.launch = launch
        self.ranks: list[_Rank] = []
        self._memory = self._memory_seen = read_memory()
        self._positions: dict[int, Position] = {}

    def start(self) -> None:
        for stale in [*self.launch.folder.glob("failure-*"), *self.launch.folder.glob("position-*")]:
            stale.unlink()
        for number in range(self.launch.count):
            self.ranks.append(self._start(number))

    def _start(self, number: int) -> _Rank:
        rank = self.launch.first_rank + number
        speaks = rank == 0
        try:
            process = subprocess.Popen(
                [sys.executable, "-P", "-m", "launcher", *self.launch.arguments],
                env=self.launch.environ(number),
                stdin=None if speaks else subprocess.DEVNULL,
                stdout=None if speaks else subprocess.PIPE,
                stderr=subprocess.PIPE if speaks else subprocess.STDOUT,
            )
        except OSError as error:
            raise RefusedError(
                f"rank {rank} cannot be started: {error.strerror}; see the limits of this shell (ulimit -n, ulimit -u) "
                "and the host's memory"
            ) from None
        log = self.launch.log(number)
        source = process.stderr if speaks else process.stdout
        assert source is not None
        forwarder = threading.Thread(target=forward, args=(source, log, speaks, self.launch.show), daemon=True)
        forwarder.start()
        return _Rank(rank, process, log, forwarder)

    def poll(self) -> bool:
        """Take in who has ended. True once a rank has failed, or all are done."""
        for rank in self.ranks:
            if rank.ended_s is None and rank.process.poll() is not None:
                rank.ended_s = time.time()
        return self.failed or self.done

    @property
    def failed(self) -> bool:
        return any(rank.process.returncode is not None and not self._did_all(rank) for rank in self.ranks)

    @property
    def done(self) -> bool:
        return all(self._did_all(rank) for rank in self.ranks)

    def _did_all(self, rank: _Rank) -> bool:
        """It has ended well, and not before its work did."""
        return rank.process.returncode == 0 and self._position(rank).phase == ENDING

    def seen(self) -> dict[int, Seen]:
        """Where the living ranks are."""
        found = {}
        self._memory_seen = read_memory()
        for rank in self.ranks:
            if rank.process.returncode is None:
                rank.held_bytes = max(rank.held_bytes, held_bytes(rank.process.pid))
                found[rank.number] = Seen(position=self._position(rank), state=state_of(rank.process.pid))
        return found

    def _position(self, rank: _Rank) -> Position:
        return read_position(self.launch.folder / POSITION.format(rank.number)) or Position()

    def settle(self) -> None:
        """Let ranks that fail with the first say so."""
        self._note_living()
        deadline = time.monotonic() + _SETTLE_S
        while time.monotonic() < deadline and not all(rank.process.poll() is not None for rank in self.ranks):
            self.poll()
            time.sleep(_POLL_S)
        self.poll()

    def _note_living(self) -> None:
        for rank in self.ranks:
            self._positions.setdefault(rank.number, self._position(rank))
            rank.state = rank.state or state_of(rank.process.pid)

    def end(self) -> None:
        """Ask, wait, kill."""
        self._note_living()
        running = [rank for rank in self.ranks if rank.process.poll() is None]
        for rank in running:
            rank.process.terminate()
        deadline = time.monotonic() + _TERMINATE_S
        for rank in running:
            try:
                rank.process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                rank.process.kill()
        for rank in running:
            with contextlib.suppress(subprocess.TimeoutExpired):
                rank.process.wait(_KILL_S)
        for rank in self.ranks:
            rank.forwarder.join(timeout=1.0)

    def ends(self) -> list[RankEnd]:
        """How each rank ended, when all have."""
        failures = {failure.rank: failure for failure in Failure.read_all(self.launch.folder)}
        kills = max(0, read_memory().kills - self._memory.kills)
        return [self._end_of(rank, failures.get(rank.number), kills) for rank in self.ranks]

    def _end_of(self, rank: _Rank, failure: Failure | None, memory_kills: int) -> RankEnd:
        # What there was before somebody was killed, and gave back what it held.
        memory = self._memory_seen
        return RankEnd(
            rank=rank.number,
            pid=rank.process.pid,
            host=host_name(),
            # None: not even SIGKILL has ended it yet.
            code=-signal.SIGKILL if rank.process.returncode is None else rank.process.returncode,
            ended_s=rank.ended_s,
            position=self._positions.get(rank.number) or self._position(rank),
            state=rank.state,
            held_bytes=rank.held_bytes,
            free_bytes=memory.free_bytes,
            total_bytes=memory.total_bytes,
            memory_of=memory.whose,
            memory_kills=memory_kills,
            failure=failure,
            trace=last_words(rank.log) if failure is not None and failure.cause else "",
        )


def poll_pause() -> None:
    time.sleep(_POLL_S)
