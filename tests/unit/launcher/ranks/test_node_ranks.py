"""How many ranks a host starts, where the job says auto, gpu or cpu."""

from pathlib import Path

import pytest

from launcher.ranks.node_ranks import _devices, count_gpus, count_ranks, ranks_here
from parallel import RefusedError


@pytest.mark.parametrize(
    ("wanted", "device", "gpus", "cores", "ranks"),
    [
        (None, "auto", 8, 64, 1),
        (4, "auto", 8, 64, 4),
        ("gpu", "auto", 8, 64, 8),
        ("auto", "auto", 8, 64, 8),
        ("auto", "cpu", 8, 64, 1),
        ("auto", "auto", 0, 64, 1),
        ("cpu", "cpu", 8, 64, 64),
    ],
)
def test_ranks_are_counted_by_what_the_host_has(
    wanted: int | str | None, device: str, gpus: int, cores: int, ranks: int
) -> None:
    assert count_ranks(wanted, device, gpus, cores) == ranks


def test_a_rank_for_each_gpu_is_refused_where_there_is_none() -> None:
    with pytest.raises(RefusedError, match="--nproc_per_node is gpu but this host has no GPU that can be seen"):
        count_ranks("gpu", "auto", 0, 64)


@pytest.mark.parametrize(
    ("visible", "gpus"),
    [
        (None, 8),
        ("", 0),
        ("-1", 0),
        ("0", 1),
        ("0,1,5", 3),
        (" 2 , 3", 2),
        ("0,9,1", 1),
        ("0,-1,1", 1),
        ("1,1", 1),
        ("GPU-8932f937,GPU-0a1b", 2),
        ("NoDevFiles", 0),
    ],
)
def test_gpus_are_those_that_cuda_may_see(visible: str | None, gpus: int) -> None:
    assert count_gpus(visible, 8) == gpus


def test_gpus_are_found_where_the_driver_lists_them(tmp_path: Path) -> None:
    assert _devices(tmp_path) == 0
    for gpu in ("0000:01:00.0", "0000:02:00.0", "0000:03:00.0"):
        (tmp_path / "proc/driver/nvidia/gpus" / gpu).mkdir(parents=True)
    assert _devices(tmp_path) == 3
    (tmp_path / "dev").mkdir()
    for name in ("nvidia0", "nvidia12", "nvidiactl", "nvidia-uvm"):
        (tmp_path / "dev" / name).touch()
    assert _devices(tmp_path) == 2


def test_a_number_needs_no_host() -> None:
    assert ranks_here(3, "auto", {}) == 3
    assert ranks_here("cpu", "cpu", {}) >= 1
