"""Faults of `reshard` (as FAULTS C76): a new folder as a whole or none, and SRC is only read."""

import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from tests.checkpoints import SHARD, WIDE, Sizes, cut_short, flip_bit, write_checkpoint
from tests.end_to_end.command import (
    WHILE_LOADING_S,
    CopyOf,
    Running,
    Said,
    assert_done,
    assert_refused,
    run,
    snapshot,
)

FIRST = SHARD.format(0)
# Writing it takes long enough to be met in the middle.
LARGE = Sizes(dim=768, n_layers=4)


def _nothing(_case: Path) -> None:
    pass


def _destination_is_a_folder(case: Path) -> None:
    (case / "dst").mkdir()
    (case / "dst" / "keep.txt").write_text("mine")


def _destination_is_a_file(case: Path) -> None:
    (case / "dst").write_text("mine")


def _destination_is_a_dangling_link(case: Path) -> None:
    (case / "dst").symlink_to("nowhere")


def _bit_flip(case: Path) -> None:
    flip_bit(case / "ckpt" / FIRST, 3)


def _cut_short(case: Path) -> None:
    cut_short(case / "ckpt" / FIRST, 0.5)


def _no_source(case: Path) -> None:
    shutil.rmtree(case / "ckpt")


FAULTS: dict[str, tuple[Callable[[Path], None], tuple[str, ...], tuple[Said, ...]]] = {
    "dst_is_a_folder": (_destination_is_a_folder, ("dst", "--mp", "2"), ("dst", "is there already", "remove")),
    "dst_is_a_file": (_destination_is_a_file, ("dst", "--mp", "2"), ("dst", "is there already")),
    "dst_is_a_dangling_link": (_destination_is_a_dangling_link, ("dst", "--mp", "2"), ("dst", "is there already")),
    "dst_is_src": (_nothing, ("ckpt", "--mp", "2"), ("ckpt", "is there already")),
    "parent_of_dst_missing": (_nothing, ("no/dst", "--mp", "2"), ("no", "does not exist")),
    "more_ranks_than_heads": (_nothing, ("dst", "--mp", "5"), ("cannot cut 4 heads", "5 ranks", "MP of 4 or fewer")),
    "src_missing": (_no_source, ("dst", "--mp", "2"), ("ckpt", "does not exist")),
    "src_cut_short": (_cut_short, ("dst", "--mp", "2"), (FIRST, "download it again")),
    "src_with_a_flipped_bit": (_bit_flip, ("dst", "--mp", "2"), (FIRST, "data/3", "CRC-32")),
}


@pytest.mark.parametrize(("prepare", "words", "says"), FAULTS.values(), ids=FAULTS)
def test_a_reshard_that_cannot_be_done_leaves_everything_as_it_was(
    prepare: Callable[[Path], None], words: tuple[str, ...], says: tuple[Said, ...], copy_of: CopyOf, case: Path
) -> None:
    copy_of(1)
    prepare(case)
    before = snapshot(case)
    outcome = run(["reshard", "ckpt", *words], case)
    assert snapshot(case) == before
    assert_refused(outcome, says, WHILE_LOADING_S, alone=True)


def test_reshard_under_torchrun_is_refused(copy_of: CopyOf, case: Path) -> None:
    copy_of(1)
    env = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}
    assert_refused(run(["reshard", "ckpt", "dst", "--mp", "2"], case, env=env), ["one process", "without torchrun"])


@pytest.fixture
def small_disk(case: Path) -> Iterator[Callable[[str], Path]]:
    """Mounts a small disk in memory, for as long as a test lasts; skips where that may not be done."""
    mounted: list[Path] = []

    def mount(options: str) -> Path:
        place = case / "disk"
        place.mkdir()
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(place)], capture_output=True, text=True, check=False
        )
        if done.returncode:
            pytest.skip(f"a small disk cannot be mounted here: {done.stderr.strip()}")
        mounted.append(place)
        return place

    yield mount
    for place in mounted:
        subprocess.run(["umount", str(place)], check=True)


def test_C76_a_disk_too_small_is_refused_before_writing_with_both_numbers(
    copy_of: CopyOf, case: Path, small_disk: Callable[[str], Path]
) -> None:
    copy_of(1, WIDE)
    disk = small_disk("size=1m")
    before = snapshot(case)
    outcome = run(["reshard", "ckpt", "disk/dst", "--mp", "2"], case)
    assert snapshot(case) == before
    assert_refused(outcome, [str(disk), "bytes free", str(2**20), "are needed", "dst"], WHILE_LOADING_S, alone=True)


def test_C76_a_disk_that_fills_while_writing_is_left_as_it_was(
    copy_of: CopyOf, case: Path, small_disk: Callable[[str], Path]
) -> None:
    copy_of(1)
    # Room enough for the bytes, but not for as many files.
    disk = small_disk("size=64m,nr_inodes=4")
    before = snapshot(case)
    outcome = run(["reshard", "ckpt", "disk/dst", "--mp", "2"], case)
    assert snapshot(case) == before
    assert_refused(outcome, [str(disk), "full", "dst", "make room"], WHILE_LOADING_S, alone=True)


def wait_until_it_writes(running: Running, folder: Path) -> None:
    """Wait until a shard of the hidden folder has bytes."""
    deadline = time.monotonic() + 30
    while not any(path.stat().st_size for path in folder.glob(".dst.partial-*/.consolidated.*")):
        assert running.process.poll() is None, running.err
        assert time.monotonic() < deadline, running.err
        time.sleep(0.001)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_C76_a_reshard_that_is_stopped_midway_leaves_no_folder_and_can_be_run_again(
    number: signal.Signals, case: Path
) -> None:
    write_checkpoint(case / "ckpt", 1, LARGE)
    before = snapshot(case)
    with Running(["reshard", "ckpt", "dst", "--mp", "2"], case) as running:
        wait_until_it_writes(running, case)
        os.kill(running.process.pid, number)
        outcome = running.end()
    assert outcome.left == []
    assert not (case / "dst").exists()
    after = snapshot(case)
    assert {path: after[path] for path in before} == before
    if number == signal.SIGKILL:
        assert outcome.code == -number
        # What a killed process leaves is hidden, and goes with the next run.
        assert all(path.startswith(".dst.partial-") for path in after if path not in before)
        assert_done(run(["reshard", "ckpt", "dst", "--mp", "2"], case))
        assert not list(case.glob(".dst.partial-*"))
        shard = torch.load(case / "dst" / FIRST, weights_only=True, mmap=True)
        assert shard["layers.0.attention.wq.weight"].shape == (384, 768)
    else:
        assert outcome.code == 128 + number
        assert after == before
        assert "Traceback" not in outcome.err
        assert len(outcome.err.splitlines()) <= 1


def wait_until_it_is_there(running: Running, destination: Path) -> None:
    while not destination.exists():
        assert running.process.poll() in (None, 0), running.err
        time.sleep(0.001)


@pytest.mark.drill
@pytest.mark.parametrize("mp", [2, 3], ids=["even", "uneven"])
def test_C76_a_reshard_that_is_killed_at_any_of_twenty_moments_leaves_all_or_nothing(mp: int, case: Path) -> None:
    write_checkpoint(case / "ckpt", 1, LARGE)
    words, destination = ["reshard", "ckpt", "dst", "--mp", str(mp)], case / "dst"
    with Running(words, case) as running:
        wait_until_it_writes(running, case)
        writes_s = time.monotonic() - running.started
        wait_until_it_is_there(running, destination)
        writing_s = time.monotonic() - running.started - writes_s
        assert_done(running.end())
    whole = {path.name: path.read_bytes() for path in destination.iterdir()}
    shutil.rmtree(destination)
    before, dice, whole_ones = snapshot(case), random.Random(mp), 0
    for moment in range(20):
        with Running(words, case) as running:
            # Five times before it writes, ten while it does, five about the time when it is done.
            if moment % 4 == 0:
                time.sleep(dice.uniform(0, writes_s))
            elif moment % 4 == 3:
                wait_until_it_is_there(running, destination)
                time.sleep(dice.uniform(0, 0.2))
            else:
                wait_until_it_writes(running, case)
                time.sleep(dice.uniform(0, writing_s))
            running.process.kill()
            assert running.end().left == []
        after = snapshot(case)
        assert {path: after[path] for path in before} == before
        new = {path.split("/")[0] for path in after if path not in before}
        # At most its own hidden folder besides: it removes that of the run before, or did not come so far.
        assert len(new - {"dst"}) <= 1
        assert all(name.startswith(".dst.partial-") for name in new - {"dst"})
        if destination.exists():
            whole_ones += 1
            assert {path.name: path.read_bytes() for path in destination.iterdir()} == whole
            shutil.rmtree(destination)
    print(f"MP {mp}: DST whole {whole_ones} times of 20, absent {20 - whole_ones} times")
    assert 5 <= whole_ones < 20
    assert_done(run(words, case))
    assert not list(case.glob(".dst.partial-*"))
    assert {path.name: path.read_bytes() for path in destination.iterdir()} == whole
