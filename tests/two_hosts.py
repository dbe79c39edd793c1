"""Hosts for tests: each a name, a network and a hosts file of its own, joined by cables that can be cut.

Network and UTS namespaces, reached by the processes that hold them and not by names: any number of tests do this
side by side with the same addresses, and the kernel ends all of it with the test run.
"""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

PROGRAMS = ("ip", "nsenter", "unshare", "setpriv", "mount")
NAMES = ("hA", "hB", "hC")
NETWORK, NETWORK6 = "10.78.0", "fd00:78:"
# Whatever runs in there ends with the one who started it.
_MINE = ("setpriv", "--pdeathsig", "KILL")
_OWN = (*_MINE, "unshare", "--net", "--uts", "--")


def why_not() -> str | None:
    """Why there can be no hosts here; None where there can."""
    missing = [name for name in PROGRAMS if shutil.which(name) is None]
    if missing:
        return f"pretend hosts need {', '.join(missing)} (on Debian: apt-get install iproute2 util-linux)"
    if os.geteuid() != 0:
        return "pretend hosts need root, for namespaces"
    tried = subprocess.run(
        [*_OWN, "sh", "-c", "ip link add switch type bridge && ip link add one type veth peer name two"],
        capture_output=True,
        check=False,
    )
    return f"no namespaces, bridge or veth here: {tried.stderr.decode().strip()}" if tried.returncode else None


class _Namespace:
    """A network and a name, held by a process that sleeps."""

    def __init__(self, prepare: str, *words: str, hosts_file: Path | None = None) -> None:
        self.hosts_file = hosts_file
        script = f"set -e; {prepare}; echo ready; exec sleep infinity"
        self.process = subprocess.Popen([*_OWN, "sh", "-c", script, "sh", *words], stdout=subprocess.PIPE)
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == b"ready\n"
        self.number = Path(f"/proc/{self.process.pid}/ns/net").stat().st_ino

    def wrapper(self) -> tuple[str, ...]:
        """What runs a command in there; the command's process id is that of what was started."""
        held = f"/proc/{self.process.pid}/ns"
        enter = (*_MINE, "nsenter", f"--net={held}/net", f"--uts={held}/uts", "--")
        if self.hosts_file is None:
            return enter
        # Mounts of its own, made anew: to enter others' would change the current folder.
        bind = 'mount --bind "$0" /etc/hosts && exec "$@"'
        return (*enter, "unshare", "--mount", "--", "sh", "-c", bind, str(self.hosts_file))

    def run(self, *words: str) -> str:
        return subprocess.run([*self.wrapper(), *words], capture_output=True, text=True, check=True).stdout

    def processes(self) -> dict[int, str]:
        """What runs in there but for the process that holds it: command lines by process id."""
        found = {}
        for entry in Path("/proc").iterdir():
            if entry.name.isdecimal() and int(entry.name) != self.process.pid:
                try:
                    if (entry / "ns" / "net").stat().st_ino == self.number:
                        line = (entry / "cmdline").read_bytes().replace(b"\0", b" ")
                        found[int(entry.name)] = line.decode(errors="replace")
                except OSError:
                    continue  # it has ended
        return {pid: line for pid, line in found.items() if line}

    def end(self) -> None:
        """End all that runs in there, and with that the namespaces."""
        for pid in self.processes():
            kill_if_there(pid)
        self.process.kill()
        self.process.communicate()


def kill_if_there(pid: int) -> None:
    """Kill a process that may have ended by now."""
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


@dataclass(frozen=True, slots=True)
class Host:
    """One host. `wrapper` runs a command on it."""

    name: str
    address: str
    address6: str
    namespace: _Namespace

    @property
    def wrapper(self) -> tuple[str, ...]:
        return self.namespace.wrapper()

    def run(self, *words: str) -> str:
        """What a command prints there."""
        return self.namespace.run(*words)

    def processes(self) -> dict[int, str]:
        return self.namespace.processes()

    def gone_within(self, limit_s: float) -> list[str]:
        """What still runs there after `limit_s`; empty as soon as nothing does."""
        deadline = time.monotonic() + limit_s
        while (left := self.processes()) and time.monotonic() < deadline:
            time.sleep(0.02)
        return [f"{pid}: {line}" for pid, line in left.items()]

    def go_down(self) -> None:
        """As a host without power: nobody on it says a word more."""
        self.run("ip", "link", "set", "eth0", "down")
        for pid in self.processes():
            kill_if_there(pid)


class Hosts:
    """Hosts on one switch."""

    def __init__(self, switch: _Namespace, hosts: Sequence[Host]) -> None:
        self.switch, self.hosts = switch, hosts

    def __getitem__(self, number: int) -> Host:
        return self.hosts[number]

    def cut(self, number: int) -> None:
        """Pull a host's cable out of the switch: what is sent is lost, and nobody is told."""
        self.switch.run("ip", "link", "set", f"port{number}", "down")

    def mend(self, number: int) -> None:
        self.switch.run("ip", "link", "set", f"port{number}", "up")

    @contextmanager
    def slow_cable(self, seconds: float) -> Iterator[None]:
        """Instead of the cables of the first two hosts one on which everything takes so long."""
        pair = self.hosts[:2]
        for host in pair:
            host.run("ip", "link", "del", "eth0")
        pids = [str(host.namespace.process.pid) for host in pair]
        words = [*_MINE, sys.executable, str(Path(__file__).with_name("slow_cable.py")), str(seconds), *pids]
        with subprocess.Popen(words, stdout=subprocess.PIPE) as carrier:
            try:
                assert carrier.stdout is not None
                assert carrier.stdout.readline() == b"ready\n"
                for host in pair:
                    _address(host)
                yield
            finally:
                carrier.kill()


@contextmanager
def pretend_hosts(count: int = 2, more_lines: Mapping[int, str] | None = None) -> Iterator[Hosts]:
    """So many hosts for the body; the test is skipped, with the reason, where there can be none.

    `more_lines`: put first in the hosts file of these.
    """
    reason = why_not()
    if reason is not None:
        pytest.skip(reason)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="hosts-")))
        switch = _Namespace("ip link add switch type bridge; ip link set switch up")
        stack.callback(switch.end)
        hosts = []
        for number in range(count):
            host = _make_host(folder, number, count, (more_lines or {}).get(number, ""))
            stack.callback(host.namespace.end)
            _lay_cable(switch, host, number)
            hosts.append(host)
        yield Hosts(switch, hosts)


def _make_host(folder: Path, number: int, count: int, more: str) -> Host:
    name = NAMES[number]
    known = [f"{NETWORK}.{other + 1} {NAMES[other]}" for other in range(count)]
    file = folder / f"hosts-{number}"
    file.write_text("\n".join(["127.0.0.1 localhost", "::1 localhost", *filter(None, [more]), *known, ""]))
    namespace = _Namespace('hostname "$1"; ip link set lo up', name, hosts_file=file)
    return Host(name, f"{NETWORK}.{number + 1}", f"{NETWORK6}:{number + 1}", namespace)


def _lay_cable(switch: _Namespace, host: Host, number: int) -> None:
    port = f"port{number}"
    switch.run("ip", "link", "add", port, "type", "veth", "peer", "eth0", "netns", str(host.namespace.process.pid))
    switch.run("ip", "link", "set", port, "master", "switch", "up")
    _address(host)


def _address(host: Host) -> None:
    host.run("ip", "addr", "add", f"{host.address}/24", "dev", "eth0")
    # No waiting for whether somebody else has it.
    host.run("ip", "addr", "add", f"{host.address6}/64", "dev", "eth0", "nodad")
    host.run("ip", "link", "set", "eth0", "up")
