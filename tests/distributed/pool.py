"""Rank processes that stay warm for a test session: send a function, get one result per rank.

The ranks meet over a file in a private folder and talk over gloo on the loopback device. A function
travels by its name, so it must stand at the top of a module that the ranks can import.
"""

import contextlib
import faulthandler
import os
import pickle
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from multiprocessing import get_context, parent_process
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from parallel.registry import initialize_model_parallel
from parallel.world import World, start_world

# Ranks are forked from one server process that has imported these: torch is read once, not once per rank.
PRELOADED = ["tests.distributed.pool", "fairscale.nn.model_parallel.layers", "pytest", "torch"]
START_LIMIT_S = 60.0
# A body takes milliseconds; this is for a machine that is busy with something else.
BODY_LIMIT_S = 20.0
# The others of a failed rank may wait for it in a collective: longer than this is a waste of time.
GRACE_S = 1.0
STOP_LIMIT_S = 5.0

Start = Callable[[int], World]


class RankError(Exception):
    """What the ranks reported: a traceback each, or that a rank gave no answer."""


def start_on_cpu(size: int) -> World:
    """The world that most tests want: gloo on the CPU, and fairscale's registry filled at size 1 too."""
    if size == 1:
        # start_world makes no group for one process, and fairscale's layers need one.
        store = dist.FileStore(os.environ["SHARDRUN_RENDEZVOUS_FILE"], 1)
        dist.init_process_group("gloo", store=store, rank=0, world_size=1)
        initialize_model_parallel(1)
    return start_world(device="cpu", timeout_s=BODY_LIMIT_S)


@dataclass(frozen=True, slots=True)
class _Rank:
    process: BaseProcess
    connection: Connection


@dataclass(slots=True)
class Pool:
    """`size` ranks, started on first use and again after a failure."""

    size: int
    folder: Path
    start: Start = start_on_cpu
    _ranks: list[_Rank] = field(default_factory=list)
    _starts: int = 0

    def run(self, body: Callable[..., Any], *args: Any, limit_s: float = BODY_LIMIT_S) -> list[Any]:
        """`body(world, *args)` on every rank; its results in order of rank. RankError has the tracebacks."""
        if not self._ranks:
            self._start()
        task = pickle.dumps((body, args))
        for rank in self._ranks:
            # A rank that has died meanwhile is reported, with its exit code, where its answer is missed.
            with contextlib.suppress(OSError):
                rank.connection.send_bytes(task)
        return self._collect(limit_s)

    def printed(self, rank: int, stream: str) -> str:
        """What a rank wrote on 'stdout' or 'stderr' since it was started."""
        return self._log(rank, stream).read_text(encoding="utf-8", errors="replace")

    def close(self) -> None:
        """Ask the ranks to leave, and end those that do not."""
        for rank in self._ranks:
            rank.connection.close()
        deadline = time.monotonic() + STOP_LIMIT_S
        for rank in self._ranks:
            rank.process.join(max(0.0, deadline - time.monotonic()))
        self._kill()

    def _log(self, rank: int, stream: str) -> Path:
        return self.folder / f"start{self._starts}-rank{rank}.{stream}"

    def _start(self) -> None:
        self._starts += 1
        context = get_context("forkserver")
        context.set_forkserver_preload(PRELOADED)
        meeting = str(self.folder / f"start{self._starts}-meeting")
        for number in range(self.size):
            ours, theirs = context.Pipe()
            logs = str(self._log(number, "stdout")), str(self._log(number, "stderr"))
            arguments = (number, self.size, meeting, logs, self.start, theirs)
            process = context.Process(target=_serve, args=arguments, daemon=True)
            process.start()
            # Else the end of a rank would not close the pipe.
            theirs.close()
            self._ranks.append(_Rank(process, ours))
        self._collect(START_LIMIT_S)

    def _collect(self, limit_s: float) -> list[Any]:
        """One answer per rank. After a failure the ranks may be out of step, so all of them are ended."""
        deadline = time.monotonic() + limit_s
        answers: dict[int, tuple[bool, Any]] = {}
        waiting = {rank.connection: number for number, rank in enumerate(self._ranks)}
        while waiting and (ready := wait(list(waiting), max(0.0, deadline - time.monotonic()))):
            for connection in ready:
                assert isinstance(connection, Connection)
                number = waiting.pop(connection)
                answers[number] = self._receive(number)
                if not answers[number][0]:
                    deadline = min(deadline, time.monotonic() + GRACE_S)
        if waiting or not all(good for good, _ in answers.values()):
            silent = [self._stack(number) for number in sorted(waiting.values())]
            failed: dict[str, list[int]] = {}
            for number, (good, text) in sorted(answers.items()):
                if not good:
                    failed.setdefault(text, []).append(number)
            self._kill()
            shown = [f"{_named(numbers)} {text}" for text, numbers in failed.items()]
            raise RankError("\n".join(["", *shown, *silent]))
        return [answers[number][1] for number in range(self.size)]

    def _receive(self, number: int) -> tuple[bool, Any]:
        try:
            good, result = pickle.loads(self._ranks[number].connection.recv_bytes())
        except (EOFError, ConnectionResetError):
            self._ranks[number].process.join(STOP_LIMIT_S)
            code = self._ranks[number].process.exitcode
            return False, f"ended with exit code {code}\n{self.printed(number, 'stderr')}"
        return good, result if good else f"raised\n{result}"

    def _stack(self, number: int) -> str:
        """Where a silent rank stands: faulthandler answers even from within a collective."""
        process = self._ranks[number].process
        if process.pid is None or not process.is_alive():
            return f"rank {number} gave no answer and has ended"
        before = len(self.printed(number, "stderr"))
        os.kill(process.pid, signal.SIGUSR1)
        time.sleep(0.2)
        return f"rank {number} gave no answer; it stands at\n{self.printed(number, 'stderr')[before:]}"

    def _kill(self) -> None:
        for rank in self._ranks:
            rank.connection.close()
            rank.process.kill()
            rank.process.join()
        self._ranks.clear()


def _named(numbers: list[int]) -> str:
    return f"rank{'s' if len(numbers) > 1 else ''} {', '.join(map(str, numbers))}"


def _serve(rank: int, size: int, meeting: str, logs: tuple[str, str], start: Start, tasks: Connection) -> None:
    """One rank from start to end: answers tasks until the pipe is closed."""
    threading.Thread(target=_end_with_the_session, daemon=True).start()
    for stream, path in zip((sys.stdout, sys.stderr), logs, strict=True):
        stream.flush()
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), stream.fileno())
    faulthandler.register(signal.SIGUSR1, file=sys.stderr)
    os.environ.update(
        RANK=str(rank),
        WORLD_SIZE=str(size),
        LOCAL_RANK=str(rank),
        LOCAL_WORLD_SIZE=str(size),
        SHARDRUN_RENDEZVOUS_FILE=meeting,
        GLOO_SOCKET_IFNAME="lo",
    )
    worlds: list[World] = []
    _answer(tasks, lambda: worlds.append(start(size)))
    if not worlds:
        return
    torch.set_num_threads(1)
    while True:
        try:
            task = tasks.recv_bytes()
        except EOFError:
            break
        _answer(tasks, partial(_do, task, worlds[0]))
    worlds[0].close()
    sys.stderr.flush()
    # Without taking torch down piece by piece, which costs each rank half a second.
    os._exit(0)


def _do(task: bytes, world: World) -> Any:
    body, args = pickle.loads(task)
    return body(world, *args)


def _answer(tasks: Connection, act: Callable[[], Any]) -> None:
    try:
        answer = pickle.dumps((True, act()))
    except BaseException:
        answer = pickle.dumps((False, traceback.format_exc()))
    sys.stdout.flush()
    sys.stderr.flush()
    tasks.send_bytes(answer)


def _end_with_the_session() -> None:
    """End this rank when the test session ends in whatever way, even while the rank is busy in a collective."""
    session = parent_process()
    assert session is not None
    session.join()
    os._exit(1)
