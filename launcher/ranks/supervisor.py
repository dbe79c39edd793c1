"""The launcher: starts this host's ranks, watches them, ends them together, and says what became of them.

On one host the ranks meet through a file in a private folder: no port is opened. Those of several hosts are
started by a launcher each, which keep in touch (launcher/hosts). The first failure decides; whatever happens, no rank
outlives its launcher (each asks the kernel to die with it).
"""

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from launcher.console import make_log_dir, say
from launcher.hosts.address import interface_variables
from launcher.hosts.link import Alone, Link, Place, State
from launcher.hosts.linking import open_link
from launcher.ranks.crew import Crew, Launch, poll_pause
from launcher.ranks.folder import private_folder
from launcher.ranks.forwarding import to_terminal
from launcher.ranks.report import (
    OUR_FAULT,
    RANK_FAILED,
    Stopped,
    ctrl_c_is_taken,
    print_error,
    stop_patiently,
)
from launcher.ranks.verdict import Verdict
from launcher.ranks.watch import Hang, Watch
from launcher.settings.options import ParallelSection
from launcher.terminal import terminal_kept
from parallel.errors import RefusedError

# How often the ranks' positions are read.
_LOOK_S = 0.2


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """What the launcher is to run."""

    # Of `python -m launcher`.
    arguments: Sequence[str]
    # Ranks of this host.
    ranks: int
    run_id: str
    parallel: ParallelSection
    # What would fit, asked when a rank ran out of memory; "": not known.
    advise: Callable[[], str] = lambda: ""
    # Given the ranks' lines that are for the terminal.
    show: Callable[[bytes], None] = to_terminal


@terminal_kept()
def supervise(run: Run) -> int:
    """Run it to its end; the exit code of the whole. Every host's launcher calls this."""
    logs = None if run.parallel.log_dir is None else make_log_dir(str(Path(run.parallel.log_dir) / run.run_id))
    with ExitStack() as stack:
        folder = stack.enter_context(private_folder())
        # In a chat at the terminal Ctrl-C stops an answer and not the run.
        stop_patiently(spared=lambda: ctrl_c_is_taken(folder))
        link = stack.enter_context(_linked(run))
        try:
            verdict = _attempts(run, link, folder, logs or folder)
        except Stopped as stopped:
            link.stopped(stopped.number)
            verdict = Verdict(code=stopped.exit_code, text=stopped.text, stopped=True)
        if verdict.no_memory and link.speaks:
            verdict = replace(verdict, text="; ".join(filter(None, [verdict.text, run.advise()])))
        _say(verdict, link, logs)
        return verdict.code


def _attempts(run: Run, link: Link, folder: Path, logs: Path) -> Verdict:
    attempt = 0
    while True:
        place = link.begin(attempt)
        launch = Launch(
            arguments=run.arguments,
            first_rank=place.first_rank,
            count=run.ranks,
            world_size=place.world_size,
            attempt=attempt,
            folder=folder,
            logs=logs,
            master=place.master,
            variables=place.variables,
            show=run.show,
        )
        verdict = _attempt(Crew(launch), link, Watch(run.parallel.heartbeat_s, run.parallel.timeout_s))
        left = run.parallel.max_restarts - attempt
        again = left > 0 and verdict.code in (RANK_FAILED, OUR_FAULT)
        if not link.conclude(verdict, again):
            return verdict
        attempt += 1
        if link.speaks:
            say(f"{verdict.text}; all ranks are started again ({attempt} of {run.parallel.max_restarts} times)")


def _attempt(crew: Crew, link: Link, watch: Watch) -> Verdict:
    try:
        crew.start()
        over = _until_over(crew, link, watch)
        if over.done:
            return Verdict(code=0)
        crew.settle()
        crew.end()
        return link.decide(crew.ends(), over.hang)
    finally:
        crew.end()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Over:
    """How an attempt came to its end: all ranks of all hosts are done, or one has failed, or hangs."""

    done: bool = False
    hang: Hang | None = None


def _until_over(crew: Crew, link: Link, watch: Watch) -> _Over:
    looked_s = watched_s = time.monotonic()
    seen = crew.seen()
    while True:
        crew.poll()
        now = time.monotonic()
        look = now - looked_s > _LOOK_S
        if look:
            seen, looked_s = crew.seen(), now
        news = link.exchange(State(seen=seen, failed=crew.failed, done=crew.done))
        if news.done or crew.failed or news.stop:
            return _Over(done=news.done)
        if look and link.watches:
            hang = watch.look({**seen, **news.others}, now - watched_s)
            watched_s = now
            if hang is not None:
                # The other hosts end their ranks meanwhile.
                link.exchange(State(seen=seen, failed=True, done=False))
                return _Over(hang=hang)
        poll_pause()


def _say(verdict: Verdict, link: Link, logs: Path | None) -> None:
    if not verdict.text:
        return
    if verdict.stopped:
        say(verdict.text)
        return
    if link.speaks and verdict.trace:
        sys.stderr.write(verdict.trace)
        sys.stderr.flush()
    kept = f"; logs in {logs}" if logs is not None and verdict.code != RefusedError.exit_code else ""
    print_error(f"{verdict.text}{kept}")


@contextmanager
def _linked(run: Run) -> Iterator[Link]:
    """This host's link to the others."""
    link = _open_link(run)
    try:
        yield link
    finally:
        link.close()


def _open_link(run: Run) -> Link:
    parallel = run.parallel
    if parallel.nnodes == 1:
        # Ranks of one machine need no other interface; gloo would listen on the one of its host name.
        return Alone(Place(world_size=run.ranks, variables=interface_variables("127.0.0.1", several_hosts=False)))
    link = open_link(parallel, run.ranks)
    named = ", ".join(f"{name}={value}" for name, value in link.variables.items())
    say(f"{parallel.nnodes} hosts meet at {parallel.rdzv_endpoint}{f'; {named}' if named else ''}")
    return link
