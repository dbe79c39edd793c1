"""Results as an object, as a table and as a picture; batches that memory does not suffice for."""

import json
from pathlib import Path

import pytest

from launcher.benchmarking.delivery import deliver
from launcher.benchmarking.planning import fitting_batches, workload
from launcher.benchmarking.results import Bench, merged
from launcher.benchmarking.table import as_text
from launcher.benchmarking.task import Task, read_task
from launcher.settings.bench_options import BenchOptions
from model.planning.plan import Room, plan_of, shares_of
from parallel.environment import Environment
from parallel.errors import RefusedError
from tests.checkpoints import WIDE
from tests.unit.launcher.benchmarking.benches import bench


def test_sizes_measured_apart_become_one_object_and_come_back_from_it() -> None:
    found = merged([bench(2), bench(1)])
    assert Bench.from_json(found.as_json()) == found
    fields = json.loads(found.as_json())
    # The first size's.
    assert fields["load_s"] == 1.0
    assert [(row["mp"], row["batch_size"]) for row in fields["results"]] == [(2, 1), (2, 8), (1, 1), (1, 8)]
    assert [size["mp"] for size in fields["sizes"]] == [2, 1]


def test_the_table_has_a_row_for_each_batch_and_says_which_did_not_fit() -> None:
    lines = as_text(merged([bench(1), bench(2, (1,), left_out=(8, 32))])).splitlines()
    assert lines[0] == "ckpt: 7 billion parameters (from files), dtype bfloat16; 128 + 64 tokens a row"
    assert lines[1] == "2 cores of AMD EPYC, torch 2.13.0; 2026-11-20T12:00:00Z"
    rows = [line.split() for line in lines[4:7]]
    assert rows[1] == ["1", "8", "250", "ms", "4096", "50.0%", "128", "(124", "to", "132)", "12.5%"]
    assert [row[:2] for row in rows] == [["1", "1"], ["1", "8"], ["2", "1"]]
    assert "  loaded in 500 ms (1 GB, 2 GB/s); the very first token 1.5 s later" in lines
    assert "  rank 1: 2 GB at most, planned 1 GB" in lines
    assert lines[-1] == "  no memory for batches of 8 and 32"


def test_the_picture_is_a_png_and_the_object_goes_to_the_file(tmp_path: Path) -> None:
    options = BenchOptions(plot=str(tmp_path / "rates.png"), output=str(tmp_path / "bench.json"))
    deliver(merged([bench(1), bench(2, (1,))]), options)
    assert (tmp_path / "rates.png").read_bytes().startswith(b"\x89PNG\r\n")
    assert json.loads((tmp_path / "bench.json").read_text())["results"]


@pytest.fixture
def task(tmp_path: Path) -> Task:
    (tmp_path / "params.json").write_text(json.dumps({**WIDE.params(), "vocab_size": WIDE.vocabulary}))
    return read_task([str(tmp_path)], {"max_batch_size": "32"}, Environment())


def test_batches_that_memory_does_not_suffice_for_are_left_out(task: Task) -> None:
    work = workload(task, "bfloat16", "cpu", 8)
    needed = sum(rank.device_bytes for rank in plan_of(work, shares_of(work, 2)).ranks)
    assert fitting_batches(task, work, 2, Room(bytes=needed, gpus=None, source="")) == [1, 8]
    assert fitting_batches(task, work, 2, Room(bytes=2**40, gpus=None, source="")) == [1, 8, 32]


def test_where_not_even_one_row_fits_it_is_refused_with_both_amounts(task: Task) -> None:
    work = workload(task, "bfloat16", "cpu", 1)
    with pytest.raises(RefusedError, match=r"a batch of 1 at MP 2 takes .* for all ranks .*, 1 MB are free; use more"):
        fitting_batches(task, work, 2, Room(bytes=10**6, gpus=None, source=""))
