"""The supervisor of ranks on one machine: starts them, forwards what they say, ends them together.

The ranks meet through a file in a private folder: no port is opened. The first failure decides; whatever
happens, no rank outlives this process (each asks the kernel to die with it).
"""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TextIO

from launcher.console import make_log_dir, say
from launcher.ranks.report import (
    OUR_FAULT,
    RANK_FAILED,
    READER_GONE,
    Failure,
    Stopped,
    ctrl_c_is_taken,
    print_error,
    stop_on_signals,
)
from launcher.terminal import terminal_kept
from parallel.environment import RENDEZVOUS_FILE
from parallel.errors import RefusedError

_POLL_S = 0.02
# After the first failure, for the other ranks to end by themselves with the same message.
_SETTLE_S = 0.5
_TERMINATE_S = 2.0
# Exit codes above this: stopped by a signal.
SIGNALLED = 128

_HINTS = {
    "SIGKILL": " (often the host's memory ran out: see dmesg)",
    "SIGBUS": " (a weight file was cut short while it was in use: weights stay in their files)",
}


@dataclass(slots=True)
class Rank:
    """A started rank: its process, its log, and the thread that fills it."""

    number: int
    process: "subprocess.Popen[str]"
    log: Path
    forwarder: threading.Thread


@terminal_kept()
def run_ranks(arguments: Sequence[str], count: int, log_dir: str | None) -> int:
    """Run `python -m launcher ARGUMENTS` as `count` ranks; the exit code of the whole."""
    kept = None if log_dir is None else make_log_dir(log_dir)
    folder = Path(tempfile.mkdtemp(prefix="shardrun-"))
    logs = kept or folder
    # In a chat at the terminal Ctrl-C stops an answer and not the run.
    stop_on_signals(spared=lambda signal_number: signal_number == signal.SIGINT and ctrl_c_is_taken(folder))
    ranks: list[Rank] = []
    try:
        for number in range(count):
            ranks.append(_start(arguments, number, count, folder, logs))  # noqa: PERF401
        failed = _wait(ranks)
        if failed is None:
            return 0
        _settle(ranks)
        _end(ranks)
        return _report(ranks, failed, Failure.read_all(folder), log_dir)
    except Stopped as stopped:
        _end(ranks)
        say(f"stopped by {signal.Signals(stopped.number).name}")
        return stopped.exit_code
    finally:
        _end(ranks)
        for rank in ranks:
            rank.forwarder.join(timeout=1.0)
        shutil.rmtree(folder, ignore_errors=True)


def _start(arguments: Sequence[str], number: int, count: int, folder: Path, logs: Path) -> Rank:
    package_root = Path(__file__).resolve().parents[2]
    environ = {
        **os.environ,
        "RANK": str(number),
        "LOCAL_RANK": str(number),
        "WORLD_SIZE": str(count),
        "LOCAL_WORLD_SIZE": str(count),
        RENDEZVOUS_FILE: str(folder / "store"),
        # The same files as this process's, wherever the workers' current folder is.
        "PYTHONPATH": os.pathsep.join(filter(None, [str(package_root), os.environ.get("PYTHONPATH")])),
    }
    if sys.platform == "linux":
        # Ranks of one machine need no other interface; gloo would listen on the one of its host name.
        environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "launcher", *arguments],
        env=environ,
        stdin=None if number == 0 else subprocess.DEVNULL,
        stdout=None if number == 0 else subprocess.PIPE,
        stderr=subprocess.PIPE if number == 0 else subprocess.STDOUT,
        text=True,
        errors="replace",
    )
    log = logs / f"rank{number}.log"
    source = process.stderr if number == 0 else process.stdout
    assert source is not None
    forwarder = threading.Thread(target=_forward, args=(source, log, sys.stderr if number == 0 else None), daemon=True)
    forwarder.start()
    return Rank(number, process, log, forwarder)


def _forward(source: IO[str], log: Path, console: TextIO | None) -> None:
    """Copy a rank's lines to its log, and rank 0's to the terminal, a whole line a write."""
    with log.open("w", encoding="utf-8") as file:
        for line in source:
            # A full disk must not stop a rank: it would wait for somebody to read what it says.
            with contextlib.suppress(OSError):
                file.write(line)
                file.flush()
            if console is not None:
                console.write(line)
                console.flush()


def _wait(ranks: Sequence[Rank]) -> Rank | None:
    """The first rank that failed; None when all have ended well."""
    while True:
        codes = [rank.process.poll() for rank in ranks]
        for rank, code in zip(ranks, codes, strict=True):
            # A signal first: the others then fail by its consequence.
            if code is not None and code < 0:
                return rank
        for rank, code in zip(ranks, codes, strict=True):
            if code:
                return rank
        if all(code == 0 for code in codes):
            return None
        time.sleep(_POLL_S)


def _settle(ranks: Sequence[Rank]) -> None:
    deadline = time.monotonic() + _SETTLE_S
    while time.monotonic() < deadline and any(rank.process.poll() is None for rank in ranks):
        time.sleep(_POLL_S)


def _end(ranks: Sequence[Rank]) -> None:
    """Ask, wait, kill. May be called again."""
    running = [rank for rank in ranks if rank.process.poll() is None]
    for rank in running:
        rank.process.terminate()
    deadline = time.monotonic() + _TERMINATE_S
    for rank in running:
        try:
            rank.process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            rank.process.kill()
            rank.process.wait()


def _report(ranks: Sequence[Rank], first: Rank, failures: Sequence[Failure], log_dir: str | None) -> int:
    """Print the root cause once; the exit code of the run."""
    kept = f"; logs in {log_dir}" if log_dir is not None else ""
    causes = sorted((failure for failure in failures if failure.cause), key=lambda failure: failure.time_s)
    code = first.process.returncode
    if code == READER_GONE:
        return code
    if code < 0 and not causes:
        name = signal.Signals(-code).name
        print_error(f"rank {first.number} (pid {first.process.pid}) was killed by {name}{_HINTS.get(name, '')}{kept}")
        return RANK_FAILED
    if not causes:
        silent = [rank for rank in ranks if rank.process.returncode == 0]
        if failures and silent:
            print_error(f"rank {silent[0].number} left early (exit 0) while others were at work{kept}")
            return RANK_FAILED
        stopped = next((failure for failure in failures if failure.exit_code > SIGNALLED), None)
        if stopped is not None and stopped is failures[0]:
            say(stopped.text)
            return stopped.exit_code
        if stopped is not None:
            print_error(f"rank {stopped.rank} was {stopped.text}{kept}")
            return RANK_FAILED
        text = failures[0].text if failures else f"rank {first.number} ended with exit code {code} and said no reason"
        print_error(f"{text}{kept}")
        return failures[0].exit_code if failures else RANK_FAILED
    cause = causes[0]
    if cause.exit_code == OUR_FAULT and cause.rank != 0:
        for rank in ranks:
            rank.forwarder.join(timeout=1.0)
        sys.stderr.write(ranks[cause.rank].log.read_text(encoding="utf-8", errors="replace"))
    print_error(f"{cause.text}{'' if cause.exit_code == RefusedError.exit_code else kept}")
    return cause.exit_code
