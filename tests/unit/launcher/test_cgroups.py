"""Limits of containers and schedulers, of both versions of control groups, in folders as /sys has them."""

from pathlib import Path

import pytest

from launcher.cgroups import (
    Group,
    Use,
    core_quota,
    find_groups,
    killed_for_memory,
    memory_uses,
    process_uses,
)

V2 = "36 25 0:30 / /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate\n"
V1 = (
    "31 23 0:27 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755\n"
    "35 31 0:31 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory\n"
    "36 31 0:32 / /sys/fs/cgroup/cpu,cpuacct rw,relatime - cgroup cgroup rw,cpu,cpuacct\n"
)
# Docker with version 1: the path is the host's, and of the hierarchy only that part is mounted.
DOCKER_V1 = "35 31 0:31 /docker/12ab /sys/fs/cgroup/memory ro,nosuid - cgroup cgroup rw,memory\n"
AT = "/sys/fs/cgroup"


def folders(controller: str, own: str, mounts: str) -> list[str]:
    return [str(group.folder) for group in find_groups(controller, own, mounts)]


@pytest.mark.parametrize(
    ("controller", "own", "mounts", "found"),
    [
        ("memory", "0::/\n", V2, [AT]),
        ("memory", "0::/job_7/step_0\n", V2, [f"{AT}/job_7/step_0", f"{AT}/job_7", AT]),
        (
            "memory",
            "9:memory:/slurm/job_7\n0::/\n",
            V1,
            [f"{AT}/memory/slurm/job_7", f"{AT}/memory/slurm", f"{AT}/memory"],
        ),
        ("cpu", "4:cpu,cpuacct:/a\n", V1, [f"{AT}/cpu,cpuacct/a", f"{AT}/cpu,cpuacct"]),
        ("memory", "9:memory:/docker/12ab\n", DOCKER_V1, [f"{AT}/memory"]),
        ("memory", "9:memory:/elsewhere\n", DOCKER_V1, [f"{AT}/memory"]),
        ("memory", "", V2, []),
        ("memory", "nonsense\n", "nonsense - \n", []),
    ],
)
def test_the_groups_of_a_process_are_found_from_its_own_upwards(
    controller: str, own: str, mounts: str, found: list[str]
) -> None:
    assert folders(controller, own, mounts) == found


def group(folder: Path, version: int, **files: str) -> Group:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(text)
    return Group(version, folder)


def test_memory_of_version_2_does_not_count_pages_that_are_given_back(tmp_path: Path) -> None:
    own = group(
        tmp_path,
        2,
        memory__max="8000000000\n",
        memory__current="7000000000\n",
        memory__stat="anon 1\nactive_file 2000000000\ninactive_file 3000000000\n",
        memory__events="low 0\noom 3\noom_kill 2\n",
    )
    assert memory_uses([own]) == [Use(8_000_000_000, 2_000_000_000)]
    assert killed_for_memory([own]) == 2


def test_memory_of_version_1_is_read_too(tmp_path: Path) -> None:
    own = group(
        tmp_path,
        1,
        memory__limit_in_bytes="4000000000",
        memory__usage_in_bytes="1000000000",
        memory__stat="cache 5\ntotal_active_file 100\ntotal_inactive_file 200\n",
        memory__oom_control="oom_kill_disable 0\nunder_oom 0\noom_kill 1\n",
    )
    assert memory_uses([own]) == [Use(4_000_000_000, 1_000_000_000 - 300)]
    assert killed_for_memory([own]) == 1


@pytest.mark.parametrize(("version", "limit"), [(2, "max"), (1, "9223372036854771712")])
def test_no_limit_is_no_limit(version: int, limit: str, tmp_path: Path) -> None:
    name = "memory__max" if version == 2 else "memory__limit_in_bytes"
    used = "memory__current" if version == 2 else "memory__usage_in_bytes"
    assert memory_uses([group(tmp_path, version, **{name: limit, used: "5"})]) == []


def test_the_quota_of_cores_is_the_smallest_of_all_groups(tmp_path: Path) -> None:
    own = group(tmp_path / "own", 2, cpu__max="max 100000")
    above = group(tmp_path / "above", 2, cpu__max="150000 100000")
    assert core_quota([own, above]) == 1.5
    assert core_quota([own]) is None
    assert core_quota([group(tmp_path / "v1", 1, cpu__cfs_quota_us="-1", cpu__cfs_period_us="100000")]) is None
    assert core_quota([group(tmp_path / "v2", 1, cpu__cfs_quota_us="50000", cpu__cfs_period_us="100000")]) == 0.5


def test_the_limit_of_processes_is_read(tmp_path: Path) -> None:
    assert process_uses([group(tmp_path, 2, pids__max="100", pids__current="90")])[0].left == 10
    assert process_uses([group(tmp_path / "none", 2, pids__max="max", pids__current="90")]) == []
