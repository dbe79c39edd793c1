"""The first process of a private Slurm cluster: it starts the daemons in the namespaces that it was started in.

Started by `tests.slurm_cluster` as process 1 of a PID namespace, so that whatever runs on the cluster, jobs and their
ranks too, ends with it. Says on stdout when the nodes are ready, a JSON line; ends at the end of its input.
"""

import json
import os
import select
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

NODES = ("n1", "n2")
NETWORK = "10.77.0"
CONTROLLER = "ctl"
READY_S = 30.0

SLURM_CONF = """\
ClusterName=private
SlurmctldHost={controller}({network}.254)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={root}/munge.socket
StateSaveLocation={root}/state
SlurmdSpoolDir={root}/spool-%n
SlurmctldPidFile={root}/slurmctld.pid
SlurmdPidFile={root}/slurmd-%n.pid
SlurmctldLogFile={root}/slurmctld.log
SlurmdLogFile={root}/slurmd-%n.log
# No cgroups, accounting, MPI: nothing that wants systemd or a database.
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
MailProg=/bin/true
SwitchType=switch/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
# What is written below, whatever this machine has.
SlurmdParameters=config_overrides
ReturnToService=2
SlurmdTimeout=60
MessageTimeout=5
KillWait=10
MinJobAge=600
SchedulerParameters=batch_sched_delay=0,sched_min_interval=0
{nodes}
PartitionName=debug Nodes=ALL Default=YES MaxTime=1:00:00 State=UP
"""


def write_files(root: Path) -> None:
    nodes = "\n".join(
        f"NodeName={name} NodeAddr={NETWORK}.{number} CPUs=4 RealMemory=2000 State=UNKNOWN"
        for number, name in enumerate(NODES, 1)
    )
    (root / "slurm.conf").write_text(SLURM_CONF.format(root=root, network=NETWORK, controller=CONTROLLER, nodes=nodes))
    (root / "cgroup.conf").write_text("ConstrainCores=no\n")  # read though nothing asks for cgroups
    hosts = [f"{NETWORK}.254 {CONTROLLER}", *(f"{NETWORK}.{number} {name}" for number, name in enumerate(NODES, 1))]
    (root / "hosts").write_text("\n".join(["127.0.0.1 localhost", *hosts, ""]))
    (root / "state").mkdir()
    key = root / "munge.key"
    key.write_bytes(os.urandom(128))
    key.chmod(0o400)


def do(*words: str) -> None:
    subprocess.run(words, check=True)


def start(root: Path, name: str, *words: str) -> "subprocess.Popen[bytes]":
    with (root / f"{name}.out").open("wb") as out:
        return subprocess.Popen(words, stdin=subprocess.PIPE, stdout=out, stderr=out, start_new_session=True)


def prepare_network(root: Path) -> None:
    """A bridge with the controller's address; one hosts file for all."""
    do("mount", "--bind", str(root / "hosts"), "/etc/hosts")
    socket.sethostname(CONTROLLER)
    do("ip", "link", "set", "lo", "up")
    do("ip", "link", "add", "bridge", "type", "bridge")
    do("ip", "addr", "add", f"{NETWORK}.254/24", "dev", "bridge")
    do("ip", "link", "set", "bridge", "up")


def start_node(root: Path, number: int, name: str) -> int:
    """A node with a host name and a network of its own, `cable-NAME` on the bridge's side; its namespace's number."""
    inside = (
        "ip link set lo up; ip addr add $1/24 dev eth0; ip link set eth0 up; hostname $2; exec slurmd -D -N $2 -f $3"
    )
    waiting = f"read -r _; {inside}"
    words = ["unshare", "--net", "--uts", "--", "bash", "-c", waiting, "bash", f"{NETWORK}.{number}", name]
    daemon = start(root, f"slurmd-{name}", *words, str(root / "slurm.conf"))
    ours = Path("/proc/self/ns/net").readlink()
    while (network := Path(f"/proc/{daemon.pid}/ns/net")).readlink() == ours:
        time.sleep(0.005)
    do("ip", "link", "add", f"cable-{name}", "type", "veth", "peer", "name", "eth0", "netns", str(daemon.pid))
    do("ip", "link", "set", f"cable-{name}", "master", "bridge", "up")
    assert daemon.stdin is not None
    daemon.stdin.write(b"go\n")
    daemon.stdin.close()
    return network.stat().st_ino


def start_munge(root: Path) -> None:
    sock = root / "munge.socket"
    options = {"key-file": "munge.key", "socket": sock.name, "pid-file": "munged.pid", "seed-file": "munge.seed"}
    words = [f"--{name}={root / file}" for name, file in options.items()]
    start(root, "munged", "munged", "--foreground", "--force", *words, f"--log-file={root}/munged.log")
    wait_until(sock.exists, "munged makes its socket")


def wait_until(true: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + READY_S
    while not true():
        if time.monotonic() > deadline:
            raise SystemExit(f"not within {READY_S} s: {what}")
        time.sleep(0.05)


def all_idle() -> bool:
    words = ["sinfo", "--noheader", "--Node", "--format=%T"]
    shown = subprocess.run(words, capture_output=True, text=True, check=False).stdout
    return shown.split() == ["idle"] * len(NODES)


def reap_until_told() -> None:
    """Wait for the end of stdin, and for every process whose parent has gone."""
    while not select.select([sys.stdin], [], [], 0.2)[0]:
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            return


def main() -> None:
    root = Path(sys.argv[1])
    os.environ["SLURM_CONF"] = str(root / "slurm.conf")
    write_files(root)
    prepare_network(root)
    start_munge(root)
    start(root, "slurmctld", "slurmctld", "-D", "-c", "-f", str(root / "slurm.conf"))
    networks = {name: start_node(root, number, name) for number, name in enumerate(NODES, 1)}
    wait_until(all_idle, "both nodes are idle")
    print(json.dumps(networks), flush=True)
    reap_until_told()


if __name__ == "__main__":
    main()
