"""How fast files are read: which file, from where, and what is too slow."""

import os
from pathlib import Path

import pytest

from launcher.doctor.disk import Rate, measure, mount_kind, rated, regular_files

MOUNTS = """\
22 1 8:1 / / rw - ext4 /dev/sda1 rw
30 22 0:40 / /data rw,relatime shared:1 - nfs4 server:/data rw,vers=4.2
31 30 0:41 / /data/fast rw - fuse.gcsfuse gcsfuse rw
"""


@pytest.mark.parametrize(
    ("path", "kind"),
    [("/home/me", "ext4"), ("/data/llama", "nfs4"), ("/data/fast/7B", "fuse.gcsfuse"), ("/database", "ext4")],
)
def test_the_file_system_below_a_path_is_found(path: str, kind: str) -> None:
    assert mount_kind(MOUNTS, Path(path)) == kind
    assert mount_kind("", Path(path)) == "unknown"


def test_pipes_and_links_to_nothing_are_passed_over(tmp_path: Path) -> None:
    (tmp_path / "shard").write_bytes(b"1234")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("nothing")
    assert regular_files(tmp_path) == {tmp_path / "shard": 4}
    assert regular_files(tmp_path / "shard") == {tmp_path / "shard": 4}
    assert regular_files(tmp_path / "pipe") == {}
    with pytest.raises(FileNotFoundError):
        regular_files(tmp_path / "nothing")


@pytest.mark.parametrize("size", [0, 1000, 5 * 2**20 + 17])
def test_a_file_is_read_to_its_end(size: int, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x" * size)
    with (tmp_path / "file").open("rb", buffering=0) as file:
        assert measure(file).read_bytes == size


def test_a_slow_disk_is_bad_with_the_time_that_loading_takes() -> None:
    slow = rated(Rate(read_bytes=30 * 10**6, seconds=3.0, direct=True), "shard on nfs4", 13 * 10**9)
    assert slow.verdict == "bad"
    assert "10 MB/s" in slow.found
    assert "13 GB take 22 min" in slow.found
    fast = rated(Rate(read_bytes=268 * 10**6, seconds=0.2, direct=False), "shard on ext4", 13 * 10**9)
    assert fast.verdict == "good"
    assert "perhaps from the system's memory of files" in fast.found


def test_a_few_bytes_tell_no_rate() -> None:
    assert "/s" not in rated(Rate(read_bytes=1000, seconds=0.001, direct=True), "params.json on ext4", 1000).found
