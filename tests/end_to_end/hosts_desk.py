"""Typing the command on each of several hosts, and what is demanded of how it ends there."""

import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from tests.checkpoints import Sizes
from tests.end_to_end.command import Outcome, Running, assert_one_message, assert_says, complete
from tests.two_hosts import Hosts, pretend_hosts

PORT = 29400
# From a cut cable to the end of both: 10 s of silence, and what it takes to end ranks that are stuck.
CUT_S = 15.0
PROMPTS = '["the old boat lay on the sand"]'
# A run that lasts until it is stopped, and says by its first output that it is at work.
ENDLESS = ("--max_seq_len", "60000", "--max_gen_len", "60000", "--eos_ids", "[]", "--stream", "--echo")
Note = Callable[[str, object], None]
# The fixture `healthy`: a healthy folder by shards and sizes.
Healthy = Callable[[int, Sizes], Path]


def place(number: int, endpoint: str = f"hA:{PORT}", hosts: int = 2) -> list[str]:
    """The flags that differ from those of a run on one host."""
    return ["--nnodes", str(hosts), "--node_rank", str(number), "--rdzv_endpoint", endpoint]


class Desk:
    """Where commands are typed on pretend hosts."""

    def __init__(self, hosts: Hosts, folder: Path, stack: ExitStack) -> None:
        self.hosts, self.folder, self._stack = hosts, folder, stack
        self.running: list[Running] = []

    def start(self, number: int, arguments: Sequence[str], env: Mapping[str, str] | None = None) -> Running:
        folder = self.folder / f"at-{self.hosts[number].name}-{len(list(self.folder.iterdir()))}"
        folder.mkdir()
        running = Running(arguments, folder, env=env, wrapper=self.hosts[number].wrapper)
        self.running.append(self._stack.enter_context(running))
        return running

    def start_all(self, arguments: Sequence[str], *flags: str, endpoint: str = f"hA:{PORT}") -> list[Running]:
        """The same on each host, but for the node rank."""
        count = len(self.hosts.hosts)
        return [self.start(number, [*arguments, *place(number, endpoint, count), *flags]) for number in range(count)]

    def start_endless(self, ckpt_dir: Path, *flags: str, ranks: int = 1) -> list[Running]:
        """A run over all that lasts until it is stopped, and is at work."""
        arguments = complete(ckpt_dir, *ENDLESS, *flags, prompts=PROMPTS)
        started = self.start_all(arguments, "--nproc_per_node", str(ranks))
        started[0].wait_for_output()
        # Further than the prompt, which is printed first.
        wait_until(lambda: len(started[0].out) > len(PROMPTS) + 20, started[0])
        # For host 0 to have heard of that: it does once a second.
        time.sleep(1.5)
        return started

    def end(self, limit_s: float = 45.0) -> list[Outcome]:
        """Wait until all have ended; nothing may be left on any host."""
        outcomes = [running.end(limit_s) for running in self.running]
        assert [host.gone_within(0.5) for host in self.hosts.hosts] == [[] for _ in self.hosts.hosts]
        return outcomes

    def wait_until_listening(self, number: int, port: int = PORT, limit_s: float = 20.0) -> None:
        """Wait until somebody listens on that port of a host."""
        deadline = time.monotonic() + limit_s
        # Of each socket: its number, own address, the other's address, state; 0A is LISTEN.
        listening = re.compile(rf":{port:04X} 0+:0000 0A ")
        while not listening.search(self.hosts[number].run("cat", "/proc/net/tcp", "/proc/net/tcp6")):
            assert time.monotonic() < deadline, f"nobody listens on port {port}"
            time.sleep(0.02)


@contextmanager
def desk_at(folder: Path, count: int = 2, more_lines: Mapping[int, str] | None = None) -> Iterator[Desk]:
    """A desk, and as many hosts; skips the test where there can be none."""
    with pretend_hosts(count, more_lines) as hosts, ExitStack() as stack:
        yield Desk(hosts, folder, stack)


def wait_until_said(running: Running, text: str, limit_s: float = 30.0) -> None:
    wait_until(lambda: text in running.err, running, limit_s)


def wait_until(true: Callable[[], bool], running: Running, limit_s: float = 30.0) -> None:
    """Wait for something that comes while `running` runs."""
    deadline = time.monotonic() + limit_s
    while not true():
        assert running.process.poll() is None, f"ended with {running.process.returncode}:\n{running.err}"
        assert time.monotonic() < deadline, f"not within {limit_s} s:\n{running.out}{running.err}"
        time.sleep(0.02)


def last_line(outcome: Outcome) -> str:
    lines = outcome.err.splitlines()
    return lines[-1] if lines else ""


def note(record_property: Note, outcomes: Sequence[Outcome], since: float) -> float:
    """The seconds since; with what was said, for the table of docs/several-hosts.md (pytest --junitxml shows it)."""
    seconds = time.monotonic() - since
    record_property("seconds", round(seconds, 1))
    for number, outcome in enumerate(outcomes):
        record_property(f"host_{number}", f"{outcome.code}: {last_line(outcome)}")
    return seconds


def assert_told(outcomes: Sequence[Outcome], code: int, says: Sequence[str]) -> None:
    """Both end with `code` and say the same cause on their last line: host 0 as its error, host 1 as what it heard."""
    first, second = outcomes
    assert (first.code, second.code) == (code, code), (first.err, second.err)
    assert_one_message(first, alone=False)
    assert "Traceback" not in second.err
    assert not second.errors
    for outcome in outcomes:
        assert_says(last_line(outcome), says)
    assert last_line(second).startswith("shardrun: the run failed, as node 0 (host hA) says: ")


def assert_parted(outcomes: Sequence[Outcome], doing: str) -> None:
    """Both end with 3 and say that they have not heard of the other."""
    for number, outcome in enumerate(outcomes):
        assert outcome.code == 3, outcome.err
        assert_one_message(outcome, alone=False)
        other = f"error: node {1 - number} (host {('hB', 'hA')[number]}) was lost while {doing}"
        assert_says(last_line(outcome), [other])
        assert_says(last_line(outcome), ["for 10 s: its host or the network to it is down"])


def assert_refused_by(outcomes: Sequence[Outcome], number: int, says: Sequence[str]) -> None:
    """Both are refused for what is wrong on host `number`, and the other's message names that one."""
    for outcome in outcomes:
        assert outcome.code == 2, outcome.err
        assert_one_message(outcome, alone=False)
        assert_says(outcome.errors[0], says)
        assert outcome.out == ""
    assert f"error: node {number} (host {('hA', 'hB')[number]}): " in outcomes[1 - number].errors[0]
    assert "(host " not in outcomes[number].errors[0]
