"""A private Slurm cluster of two nodes on this machine, for tests: real daemons, in namespaces of their own.

Network, host names, ports and process ids are the cluster's own, so that any number of them run side by side; when
the test that started one ends, however it ends, the kernel ends all that runs on it.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

PROGRAMS = ("slurmctld", "slurmd", "munged", "sbatch", "ip", "unshare", "nsenter", "setpriv")
PACKAGES = "slurm-wlm munge iproute2"
# Namespaces of its own, and an end with the one who started it.
NAMESPACES = ("--net", "--uts", "--pid", "--mount", "--mount-proc", "--fork", "--kill-child")
OWN = ("setpriv", "--pdeathsig", "KILL", "unshare", *NAMESPACES, "--")


def why_not() -> str | None:
    """Why no cluster can be started here; None where one can."""
    missing = [name for name in PROGRAMS if shutil.which(name) is None]
    if missing:
        return f"a private Slurm needs {', '.join(missing)} (on Debian: apt-get install {PACKAGES})"
    if os.geteuid() != 0:
        return "a private Slurm needs root, for namespaces"
    tried = subprocess.run([*OWN, "ip", "link", "add", "bridge", "type", "bridge"], capture_output=True, check=False)
    return f"no namespaces or no bridge here: {tried.stderr.decode().strip()}" if tried.returncode else None


class SlurmCluster:
    """A running cluster. `env` and `wrapper` make a command that of a login node."""

    def __init__(self, root: Path, process: "subprocess.Popen[bytes]", networks: dict[str, int]) -> None:
        self.root = root
        self.env = {"SLURM_CONF": str(root / "slurm.conf")}
        self._namespace = f"--net=/proc/{process.pid}/ns/net"
        self.wrapper = ("nsenter", self._namespace)
        self._networks = networks

    def run(self, *words: str) -> str:
        """What a command, such as squeue, prints on the login node."""
        env = {**os.environ, **self.env}
        return subprocess.run([*self.wrapper, *words], env=env, capture_output=True, text=True, check=True).stdout

    def processes(self, node: str) -> dict[int, str]:
        """What runs on a node besides its daemon: command lines by pid, as this process sees them."""
        found = {}
        for entry in Path("/proc").iterdir():
            if entry.name.isdecimal():
                line = self._command_line(entry, node)
                if line and not line.startswith(("slurmd ", "/usr/sbin/slurmd ")):
                    found[int(entry.name)] = line
        return found

    def _command_line(self, entry: Path, node: str) -> str:
        """The command line of a process of that node; empty for another's, and for one that has ended."""
        try:
            if (entry / "ns" / "net").stat().st_ino != self._networks[node]:
                return ""
            return (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            return ""

    def launchers(self, node: str) -> list[int]:
        """The pids of our launchers on a node; usually one."""
        ranks = self.ranks(node).values()
        return [pid for pid, line in self.processes(node).items() if " -m launcher " in line and pid not in ranks]

    def ranks(self, node: str) -> dict[int, int]:
        """The pids of started ranks on a node, by rank."""
        found = {}
        for pid, line in self.processes(node).items():
            variables = _environment(pid) if " -m launcher " in line else []
            rank = next((int(item[5:]) for item in variables if item.startswith(b"RANK=")), None)
            if rank is not None:
                found[rank] = pid
        return found

    def pull_cable(self, node: str) -> None:
        self.run("ip", "link", "set", f"cable-{node}", "down")

    def plug_cable(self, node: str) -> None:
        self.run("ip", "link", "set", f"cable-{node}", "up")

    def log(self) -> str:
        """What Slurm's controller says, for the message of a test that fails."""
        return (self.root / "slurmctld.log").read_text()[-1500:]


def _environment(pid: int) -> list[bytes]:
    try:
        return Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return []


@contextmanager
def slurm_cluster() -> Iterator[SlurmCluster]:
    """A cluster for the body; the test is skipped, with the reason, where there can be none."""
    reason = why_not()
    if reason is not None:
        pytest.skip(reason)
    # Below the system's temporary folder itself: the path of a socket has at most 107 bytes.
    root = Path(tempfile.mkdtemp(prefix="slurm-", dir="/tmp"))
    process = subprocess.Popen(_start_words(root), stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line, "\n".join(path.read_text() for path in sorted(root.glob("*.out")))
        yield SlurmCluster(root, process, json.loads(line))
    finally:
        _end(process)
        shutil.rmtree(root, ignore_errors=True)


def _end(process: "subprocess.Popen[bytes]") -> None:
    """Close its input, at which its first process ends, and with that one all."""
    try:
        process.communicate(timeout=5)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()


def _start_words(root: Path) -> Sequence[str]:
    return [*OWN, sys.executable, "-P", str(Path(__file__).with_name("slurm_inside.py")), str(root)]
