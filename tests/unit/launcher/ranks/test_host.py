"""What is known of this host, and what is made of its files where they say something or nothing."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from launcher.cgroups import Group
from launcher.ranks.host import HOST, LIMITED, HostMemory, held_bytes, read_memory, state_of, state_words

_GB = 10**9
_MEMINFO = "MemTotal:       10000000 kB\nMemFree:         1000000 kB\nMemAvailable:    4000000 kB\n"


def host(root: Path, vmstat: str = "oom_kill 3\n") -> Path:
    (root / "proc").mkdir(exist_ok=True)
    (root / "proc/meminfo").write_text(_MEMINFO)
    (root / "proc/vmstat").write_text(vmstat)
    return root


def group(root: Path, version: int, limit: str, used: int, kills: int = 0, files: int = 0) -> Group:
    folder = root / "group"
    folder.mkdir(exist_ok=True)
    texts = (
        {"memory.max": limit, "memory.current": used, "memory.events": f"oom 1\noom_kill {kills}"}
        if version == 2
        else {
            "memory.limit_in_bytes": limit,
            "memory.usage_in_bytes": used,
            "memory.oom_control": f"under_oom 0\noom_kill {kills}",
        }
    )
    name = "inactive_file" if version == 2 else "total_inactive_file"
    for file, text in {**texts, "memory.stat": f"{name} {files}"}.items():
        (folder / file).write_text(f"{text}\n")
    return Group(version, folder)


def test_without_limits_the_hosts_own_memory_counts(tmp_path: Path) -> None:
    assert read_memory(host(tmp_path), []) == HostMemory(
        total_bytes=10_000_000 * 1024, free_bytes=4_000_000 * 1024, whose=HOST, kills=3
    )


@pytest.mark.parametrize("version", [1, 2])
def test_a_control_groups_limit_counts_where_it_is_tighter(version: int, tmp_path: Path) -> None:
    tight = group(tmp_path, version, str(2 * _GB), used=int(1.9 * _GB), kills=1, files=int(0.4 * _GB))
    assert read_memory(host(tmp_path), [tight]) == HostMemory(
        total_bytes=2 * _GB, free_bytes=int(0.5 * _GB), whose=LIMITED, kills=1
    )


@pytest.mark.parametrize(("version", "limit"), [(2, "max"), (1, str(2**63 - 4096)), (2, str(90 * _GB))])
def test_a_limit_beyond_the_host_is_none(version: int, limit: str, tmp_path: Path) -> None:
    found = read_memory(host(tmp_path), [group(tmp_path, version, limit, used=_GB)])
    assert (found.whose, found.total_bytes) == (HOST, 10_000_000 * 1024)


def test_kills_of_other_control_groups_are_not_ours(tmp_path: Path) -> None:
    assert read_memory(host(tmp_path, "oom_kill 12\n"), [group(tmp_path, 2, "max", used=1)]).kills == 0


def test_where_nothing_is_known_nothing_is_made_up(tmp_path: Path) -> None:
    assert read_memory(tmp_path, []) == HostMemory()


def test_this_host_has_memory_and_some_of_it_is_free() -> None:
    found = read_memory()
    assert 0 < found.free_bytes <= found.total_bytes


def test_what_a_process_holds_grows_with_what_it_takes() -> None:
    before = held_bytes(os.getpid())
    taken = bytearray(os.urandom(2**20)) * 64
    assert held_bytes(os.getpid()) - before > 2**25
    del taken


def test_the_state_of_a_process_is_told_in_words() -> None:
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]) as process:
        try:
            process.send_signal(19)
            deadline = time.monotonic() + 10
            while state_of(process.pid) != "T" and time.monotonic() < deadline:
                time.sleep(0.01)
            assert state_words(state_of(process.pid)) == "stopped by a signal (SIGSTOP or Ctrl-Z)"
        finally:
            process.kill()


def test_of_a_process_that_has_gone_nothing_is_known() -> None:
    gone = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, check=True)
    pid = int(gone.stdout)
    assert (held_bytes(pid), state_of(pid), state_words("")) == (0, "", "")
