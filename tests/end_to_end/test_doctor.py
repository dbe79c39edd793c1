"""`doctor`: real troubles of a machine, each named with its remedy, and an end in time whatever hangs."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.checkpoints import SHARD
from tests.end_to_end.command import CopyOf, Outcome, Running, assert_refused, run

LIMIT_S = 30.0


def can_make_namespaces() -> bool:
    """A network of its own, a host name of its own and mounts of its own need root."""
    made = ["unshare", "--mount", "--net", "--uts", "ip", "link", "add", "d0", "type", "veth", "peer", "name", "d1"]
    tools = [shutil.which(name) for name in ("unshare", "ip")]
    return all(tools) and subprocess.run(made, capture_output=True, check=False).returncode == 0


needs_namespaces = pytest.mark.skipif(not can_make_namespaces(), reason="needs root and iproute2, for namespaces")


def report_of(outcome: Outcome) -> dict[str, Any]:
    """The JSON object, of a command that ended as it should."""
    report: dict[str, Any] = json.loads(outcome.out)
    assert "Traceback" not in outcome.err
    assert outcome.left == []
    assert outcome.seconds < LIMIT_S
    assert outcome.code == (2 if report["bad"] else 0), outcome.err
    assert len(outcome.errors) == (1 if report["bad"] else 0)
    return report


def found(report: dict[str, Any], name: str, verdict: str) -> list[str]:
    """What is said under a name with a verdict, the remedy behind it."""
    return [
        f"{finding['found']} -> {finding['remedy']}"
        for finding in report["findings"]
        if (finding["name"], finding["verdict"]) == (name, verdict)
    ]


def put_program(folder: Path, name: str, script: str) -> None:
    """A program that stands in for one that cannot be had here."""
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(f"#!/bin/sh\n{script}\n")
    (folder / name).chmod(0o755)


def with_programs(folder: Path) -> dict[str, str]:
    return {"PATH": f"{folder}{os.pathsep}{os.environ['PATH']}"}


def test_a_checkpoint_on_this_machine_is_looked_at_from_all_sides(copy_of: CopyOf, case: Path) -> None:
    copy_of(2)
    report = report_of(run(["doctor", "ckpt", "--ranks", "3", "--json"], case))
    assert "cut for MP 2" in found(report, "checkpoint", "good")[0]
    assert "3 ranks on cpu" in found(report, "fits", "good")[0]
    assert found(report, "tokenizer", "good")
    pairs, together = found(report, "all-reduce", "good")
    assert pairs.startswith("3 pairs of 3 ranks, gloo on cpu: 16 KiB take ")
    assert together.startswith("3 ranks together: 16 KiB take ")
    for name in ("torch", "memory", "open files", "listening (loopback)", "temporary files", "clock", "disk"):
        assert found(report, name, "good"), name
    assert list((case / "tmp").iterdir()) == []


def test_troubles_are_printed_first_each_with_its_remedy(copy_of: CopyOf, case: Path) -> None:
    """A pipe for a shard, a port that is taken, a variable that switches safety off, no folder for temporary files."""
    folder = copy_of(2)
    (folder / SHARD.format(1)).unlink()
    os.mkfifo(folder / SHARD.format(1))
    with socket.create_server(("127.0.0.1", 0)) as server:
        endpoint = f"127.0.0.1:{server.getsockname()[1]}"
        only = "surroundings,checkpoint,endpoint,room,disk"
        trouble = {"TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD": "1", "TMPDIR": "/no/such/folder"}
        outcome = run(["doctor", "ckpt", "--endpoint", endpoint, "--only", only], case, env=trouble)
    assert outcome.code == 2
    assert outcome.left == []
    assert outcome.seconds < 10.0
    lines = outcome.out.splitlines()
    first_good = next(index for index, line in enumerate(lines) if line.startswith("good"))
    bad = "\n".join(lines[:first_good])
    assert "is 1: torch.load of other programs runs the code" in bad
    assert f"{SHARD.format(1)}: is not a regular file" in bad
    assert f"rank 0 cannot listen at {endpoint}: Address already in use, held by " in bad
    assert f"(pid {os.getpid()})" in bad
    assert "TMPDIR=/no/such/folder cannot be written to" in bad
    assert all(line.split()[0] in ("bad", "->") for line in lines[:first_good])
    assert "not a regular file" not in "\n".join(lines[first_good:])
    assert outcome.errors[0].startswith("shardrun: error: doctor finds 5 bad: TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD, ")


def test_a_stray_rank_in_the_shell_is_found_and_keeps_doctor_from_nothing(case: Path) -> None:
    report = report_of(run(["doctor", "--only", "surroundings", "--json"], case, env={"RANK": "1"}))
    (line,) = found(report, "launch variables", "bad")
    assert "RANK=1 in this shell, and every command is refused" in line
    assert line.endswith("-> unset RANK")


def test_a_driver_that_hangs_is_told_and_left_alone(case: Path) -> None:
    """nvidia-smi is a stand-in: this machine need not have one."""
    put_program(case / "bin", "nvidia-smi", "exec sleep 1000")
    report = report_of(run(["doctor", "--only", "devices", "--json"], case, env=with_programs(case / "bin")))
    (line,) = found(report, "driver", "bad")
    assert "nvidia-smi does not answer within 8 s: the driver hangs" in line
    assert len(found(report, "torch", "good")) == 1


@pytest.mark.drill
def test_memory_of_a_gpu_that_somebody_holds_is_named_with_the_holder(case: Path) -> None:
    """nvidia-smi is a stand-in: this machine need not have one."""
    gpus = "0, GPU-1, NVIDIA H100, 550.54.15, 81559, 1000, Default, Disabled"
    script = f'case "$1" in *gpu=*) echo "{gpus}";; *) echo "GPU-1, 4711, python, 80000";; esac'
    put_program(case / "bin", "nvidia-smi", script)
    report = report_of(run(["doctor", "--only", "devices", "--json"], case, env=with_programs(case / "bin")))
    assert "held by python (pid 4711)" in found(report, "GPU memory", "bad")[0]
    assert found(report, "driver", "good") == ["550.54.15, 1 GPU: NVIDIA H100 -> "]


@pytest.mark.drill
def test_a_tiny_limit_on_open_files_is_told_by_a_doctor_that_has_it_too(case: Path) -> None:
    limited = ["sh", "-c", 'ulimit -n 16; exec "$@"', "sh"]
    with Running(["doctor", "--only", "room,ports,collective", "--json"], case, wrapper=limited) as running:
        report = report_of(running.end())
    assert "16 for a process (ulimit -n)" in found(report, "open files", "bad")[0]
    assert "Too many open files" in found(report, "all-reduce", "bad")[0]


# Inside namespaces: the host is called `island`, its hosts file is the first argument's, `lo` is down or up, and
# d0 (a pair of cables to nowhere) has the address 10.77.0.1.
_ISLAND = """
set -e
hostname island
mount --bind "$1" /etc/hosts
[ "$2" = down ] || ip link set lo up
if [ "$2" = cable ]; then
    ip link add d0 type veth peer name d1
    ip addr add 10.77.0.1/24 dev d0
    ip link set d0 up
    ip link set d1 up
fi
shift 2
exec "$@"
"""


def on_island(case: Path, hosts: str, network: str, arguments: Sequence[str], **env: str) -> dict[str, Any]:
    """The report from within a network and with a host name of its own."""
    (case / "hosts").write_text(f"127.0.0.1 localhost\n{hosts}\n")
    unshare = ["unshare", "--mount", "--net", "--uts", "sh", "-c", _ISLAND, "sh", str(case / "hosts"), network]
    with Running(["doctor", *arguments, "--json"], case, wrapper=unshare, env=env) as running:
        return report_of(running.end())


@pytest.mark.drill
@needs_namespaces
def test_a_loopback_that_is_down_fails_every_pair_and_says_what_to_do(case: Path) -> None:
    report = on_island(case, "127.0.0.1 island", "down", ["--only", "collective,names,ports", "--ranks", "3"])
    assert found(report, "interfaces", "bad")[0].endswith("-> ip link set lo up")
    assert "Network is unreachable" in found(report, "listening (loopback)", "bad")[0]
    assert "all 3 pairs of 3 ranks fail (gloo): " in found(report, "all-reduce", "bad")[0]


@pytest.mark.drill
@needs_namespaces
@pytest.mark.parametrize(
    ("hosts", "says"),
    [
        ("127.0.1.1 island", "'island' is 127.0.1.1: no harm on one host; over several gloo listens where no other"),
        ("10.99.0.1 island", "'island' is 10.99.0.1: which this host does not have"),
        ("", "'island': "),
    ],
)
def test_a_host_name_that_leads_nowhere_is_bad_for_several_hosts(hosts: str, says: str, case: Path) -> None:
    arguments = ["--only", "names", "--endpoint", "10.77.0.9:29500"]
    report = on_island(case, hosts, "cable", arguments)
    (line,) = found(report, "host name", "bad")
    assert line.startswith(says)
    assert "export GLOO_SOCKET_IFNAME=d0, or let /etc/hosts say '10.77.0.1 island' instead" in line


@needs_namespaces
def test_an_endpoint_that_is_not_there_is_bad_and_the_way_to_it_is_told(case: Path) -> None:
    arguments = ["--only", "endpoint,ports", "--endpoint", "10.77.0.9:29500"]
    report = on_island(case, "10.77.0.1 island", "cable", arguments)
    assert "to 10.77.0.9 through d0, from 10.77.0.1" in found(report, "endpoint route", "good")[0]
    assert "10.77.0.9:29500 cannot be reached: No route to host" in found(report, "endpoint", "bad")[0]
    assert "at 10.77.0.1 and be reached" in found(report, "listening (own)", "good")[0]


@pytest.mark.drill
@needs_namespaces
def test_an_interface_that_is_chosen_but_not_there_is_named(case: Path) -> None:
    arguments = ["--only", "names,collective"]
    report = on_island(case, "10.77.0.1 island", "cable", arguments, GLOO_SOCKET_IFNAME="eth9")
    assert (
        "is 'eth9', and no such interface is here -> unset it, or choose one of "
        in found(report, "GLOO_SOCKET_IFNAME", "bad")[0]
    )
    assert "eth9" in found(report, "all-reduce", "bad")[0]


@needs_namespaces
def test_torchruns_port_that_is_taken_is_told_with_its_holder(case: Path) -> None:
    holding = [
        *("unshare", "--net", sys.executable, "-c"),
        "import socket, subprocess, sys; server = socket.create_server(('0.0.0.0', 29500)); "
        "sys.exit(subprocess.run(sys.argv[1:]).returncode)",
    ]
    with Running(["doctor", "--only", "ports", "--json"], case, wrapper=holding) as running:
        report = report_of(running.end())
        assert f"in use, held by python (pid {running.process.pid})" in found(report, "port 29500", "bad")[0]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_with_all_that_it_started(number: signal.Signals, case: Path) -> None:
    put_program(case / "bin", "nvidia-smi", "exec sleep 1000")
    with Running(["doctor", "--only", "devices,collective"], case, env=with_programs(case / "bin")) as running:
        wait_for_children(running)
        os.kill(running.process.pid, number)
        outcome = running.end()
    assert outcome.code == 128 + number
    assert outcome.left == []
    assert outcome.seconds < 10.0
    assert list((case / "tmp").iterdir()) == []


def test_a_doctor_that_is_killed_leaves_no_process_behind(case: Path) -> None:
    put_program(case / "bin", "nvidia-smi", "exec sleep 1000")
    with Running(["doctor"], case, env=with_programs(case / "bin")) as running:
        wait_for_children(running)
        os.kill(running.process.pid, signal.SIGKILL)
        outcome = running.end(grace_s=2.0)
    assert outcome.left == []


def wait_for_children(running: Running) -> None:
    """Until the checks and the driver's tool run."""
    deadline = time.monotonic() + 20.0
    while len(running.members()) < 4:
        assert time.monotonic() < deadline, running.err
        time.sleep(0.05)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["a", "b"], "doctor wants one folder, CKPT_DIR, or none, and was given 2"),
        (["--only", "port"], "'port' is not a check of doctor; did you mean 'ports'?"),
        (["--endpoint", "node1"], "--endpoint is 'node1'; wanted HOST:PORT"),
        (["--ranks", "0"], "--ranks is '0'; wanted a whole number of 1 to 256"),
        (["--rank", "2"], "--rank is not a flag of doctor; did you mean 'ranks'?"),
    ],
)
def test_what_cannot_be_meant_is_refused(arguments: list[str], says: str, case: Path) -> None:
    assert_refused(run(["doctor", *arguments], case), [says])


def test_torchrun_is_refused(case: Path) -> None:
    assert_refused(run(["doctor"], case, env={"TORCHELASTIC_RUN_ID": "7"}), ["doctor runs in one process"])


# Inside namespaces: a folder of a file system whose server never answers, a name server that never answers, and
# then the command, whose arguments follow the case's folder.
_HUNG = """
import ctypes, os, socket, subprocess, sys
case, *command = sys.argv[1:]
libc = ctypes.CDLL(None, use_errno=True)
def mount(source, target, kind, flags, options):
    words = [None if word is None else word.encode() for word in (source, target, kind, options)]
    assert libc.mount(*words[:3], flags, words[3]) == 0, os.strerror(ctypes.get_errno())
server = os.open("/dev/fuse", os.O_RDWR)
mount("hung", f"{case}/hung", "fuse", 0, f"fd={server},rootmode=40000,user_id=0,group_id=0")
for name in ("hosts", "resolv.conf", "nsswitch.conf"):
    mount(f"{case}/{name}", f"/etc/{name}", None, 4096, None)
subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
socket.sethostname("nowhere")
silent = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
silent.bind(("127.0.0.1", 53))
sys.exit(subprocess.run(command).returncode)
"""


@pytest.mark.drill
@needs_namespaces
@pytest.mark.skipif(not Path("/dev/fuse").exists(), reason="needs /dev/fuse, for a file system that hangs")
def test_it_ends_in_time_where_everything_hangs_at_once(case: Path) -> None:
    """The driver, torch, the checkpoint's disk and that of temporary files, names, and the tools of clusters."""
    (case / "hung").mkdir()
    (case / "hosts").write_text("127.0.0.1 localhost\n")
    (case / "resolv.conf").write_text("nameserver 127.0.0.1\n")
    (case / "nsswitch.conf").write_text("hosts: files dns\n")
    (case / "torch").mkdir()
    (case / "torch" / "__init__.py").write_text("import time\ntime.sleep(1000)\n")
    for tool in ("nvidia-smi", "sbatch", "squeue", "kubectl"):
        put_program(case / "bin", tool, "exec sleep 1000")
    unshare = ["unshare", "--mount", "--net", "--uts", sys.executable, "-c", _HUNG, str(case)]
    hung = {"TMPDIR": str(case / "hung"), "PYTHONPATH": str(case), **with_programs(case / "bin")}
    arguments = ["doctor", str(case / "hung"), "--endpoint", "far.example.org:29500", "--json"]
    with Running(arguments, case, wrapper=unshare, env=hung) as running:
        report = report_of(running.end())
    for name in ("driver", "torch", "checkpoint", "all-reduce", "host name", "endpoint name", "disk"):
        (line,) = found(report, name, "bad")
        assert "no answer" in line or "does not answer" in line or "does not end" in line, line
    assert found(report, "temporary files", "bad")
    assert len(found(report, "kubectl", "unknown")) == 1
    assert found(report, "memory", "good")
