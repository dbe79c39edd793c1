"""Memory, shared memory, temporary files, limits and cores: what is bad for how many ranks."""

import resource
from pathlib import Path

import pytest

from launcher.cgroups import Use
from launcher.doctor.memory import addresses, host_memory, killed, limit, parse_meminfo, swap
from launcher.doctor.processor import cores, threads
from launcher.doctor.room import core_dumps, open_files, processes, shared_memory, temporary

MEMINFO = """\
MemTotal:       24684092 kB
MemFree:        17810000 kB
MemAvailable:   22950000 kB
SwapTotal:       8388604 kB
SwapFree:        1048576 kB
HugePages_Total:       0
"""


def test_memory_is_read_from_meminfo() -> None:
    info = parse_meminfo(MEMINFO)
    finding = host_memory(info, 2)
    assert (finding.verdict, finding.found) == ("good", "23.5 GB of 25.3 GB available on this host")
    assert "7.52 GB of 8.59 GB in use" in next(iter(swap(info))).found
    assert list(swap({})) == []


def test_memory_that_does_not_even_hold_the_ranks_is_bad() -> None:
    finding = host_memory(parse_meminfo("MemTotal: 2000000 kB\nMemAvailable: 1000000 kB\n"), 4)
    assert finding.verdict == "bad"
    assert "4 ranks take 1.6 GB before any weight" in finding.found
    assert host_memory({}, 1).verdict == "unknown"


def test_the_limit_that_leaves_least_counts() -> None:
    uses = [Use(64 * 10**9, 10**9), Use(8 * 10**9, 75 * 10**8)]
    assert limit(uses, 1).verdict == "good"
    finding = limit(uses, 2)
    assert finding.verdict == "bad"
    assert finding.found.startswith("500 MB left of 8 GB")
    assert limit([], 8).verdict == "good"


def test_kills_for_memory_are_told_and_none_is_not() -> None:
    assert [finding.found.split()[0] for finding in killed(3)] == ["3"]
    assert list(killed(0)) == []


def test_a_small_address_space_is_bad() -> None:
    assert [finding.verdict for finding in addresses(10**9)] == ["bad"]
    assert list(addresses(resource.RLIM_INFINITY)) == []


@pytest.mark.parametrize(
    ("free", "has_gpu", "verdict"),
    [(25 * 10**9, True, "good"), (64 * 2**20, True, "bad"), (64 * 2**20, False, "note"), (None, True, "bad")],
)
def test_little_shared_memory_is_bad_where_there_are_gpus(free: int | None, has_gpu: bool, verdict: str) -> None:
    assert shared_memory(free, has_gpu).verdict == verdict


def test_a_folder_for_temporary_files_that_is_not_the_one_asked_for_is_bad(tmp_path: Path) -> None:
    finding = temporary("/tmp", "/no/such/folder", 10**10)
    assert finding.verdict == "bad"
    assert "TMPDIR=/no/such/folder cannot be written to" in finding.found
    assert temporary(str(tmp_path), str(tmp_path), 10**10).verdict == "good"
    assert temporary("/tmp", None, 10**6).verdict == "bad"


@pytest.mark.parametrize(
    ("soft", "hard", "verdict", "remedy"),
    [
        (1024, 4096, "good", ""),
        (resource.RLIM_INFINITY, resource.RLIM_INFINITY, "good", ""),
        (64, 1024, "bad", "ulimit -n 1024"),
        (64, resource.RLIM_INFINITY, "bad", "ulimit -n 4096"),
        (64, 64, "bad", "ask for more"),
    ],
)
def test_few_open_files_are_bad_with_the_number_that_may_be_set(
    soft: int, hard: int, verdict: str, remedy: str
) -> None:
    finding = open_files(soft, hard)
    assert (finding.verdict, finding.remedy) == (verdict, remedy)


def test_few_processes_are_bad_and_root_is_not_bound() -> None:
    assert next(processes([Use(100, 90)], resource.RLIM_INFINITY, True, 2)).verdict == "bad"
    assert next(processes([], 20, False, 2)).verdict == "bad"
    assert next(processes([], 20, True, 2)).verdict == "good"


def test_core_dumps_are_told_only_where_they_are_on() -> None:
    assert [finding.verdict for finding in core_dumps(resource.RLIM_INFINITY)] == ["note"]
    assert list(core_dumps(0)) == []


def test_fewer_cores_than_ranks_are_noted_with_what_limits_them() -> None:
    assert cores(8, 8, None, 8).verdict == "good"
    finding = cores(4, 64, 1.5, 2)
    assert finding.verdict == "note"
    assert finding.found.startswith("1.5 of 64 cores to use (affinity leaves 4, a container's quota is 1.5)")


@pytest.mark.parametrize(("value", "verdicts"), [(None, []), ("1", ["good"]), ("8", ["note"]), ("many", ["note"])])
def test_omp_num_threads_is_held_against_cores(value: str | None, verdicts: list[str]) -> None:
    assert [finding.verdict for finding in threads(value, 8, 2)] == verdicts
