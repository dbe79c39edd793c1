"""Loading any cut on any number of ranks: each rank's slice to the bit, nothing copied in vain, all of it checked."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from model.checkpoint.checking import Check, deal_checks
from model.checkpoint.checkpoint import Checkpoint
from model.checkpoint.files import FileHeader, FileStamp
from model.checkpoint.loading import load_weights
from model.checkpoint.opening import open_checkpoint
from model.checkpoint.reading import MappedFile, open_weights
from model.checkpoint.reshard import write_meta_folder
from parallel.errors import RefusedError
from tests.checkpoints import Sizes, cut_short, whole_weights
from tests.minis import MINIS, Mini, own_part
from tests.reference import merged_weights

CPU = torch.device("cpu")
DEMO = Path(__file__).resolve().parents[4] / "configs" / "demo"
SOURCES = (1, 2, 3, 4, 6, 8, 12, 16)
LAYER = "layers.0.attention"


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Tests run side by side; more threads would wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def load(
    checkpoint: Checkpoint, rank: int, ranks: int, dtype: torch.dtype = torch.float32, neighbours: range | None = None
) -> dict[str, Tensor]:
    return load_weights(checkpoint, rank, ranks, dtype, CPU, neighbours)


# The matrix: every source to every target.


def targets_of(n_heads: int, every: bool) -> list[int]:
    """Numbers of ranks to load on: all there can be, or those that people have."""
    return [ranks for ranks in range(1, n_heads + 1) if every or ranks in SOURCES]


def check_matrix(
    folders: list[Path],
    whole: dict[str, Tensor],
    sizes: Sizes,
    embedding_dim: int,
    every: bool,
    dtype: torch.dtype = torch.float32,
) -> None:
    """Each folder on each number of ranks: every rank's slice is that of the uncut weights."""
    checkpoints = [open_checkpoint(folder) for folder in folders]
    for ranks in targets_of(sizes.n_heads, every):
        owned: dict[int, list[dict[str, Tensor]]] = {}
        for checkpoint in checkpoints:
            # One file holds its embedding whole, and need not say how others would cut it.
            dim = checkpoint.embedding_dim
            assert checkpoint.mp == 1 or dim == embedding_dim
            if dim not in owned:
                owned[dim] = [own_part(whole, sizes, dim, rank, ranks) for rank in range(ranks)]
            for rank, wanted in enumerate(owned[dim]):
                # Neighbours share the checking of the records.
                found = load(checkpoint, rank, ranks, dtype, range(ranks))
                assert found.keys() == wanted.keys()
                for name in wanted:
                    assert torch.equal(found[name], wanted[name]), f"{checkpoint.folder}, {rank} of {ranks}: {name}"


def matrix_of_a_miniature(mini: Mini, place: Path, every: bool) -> None:
    folders = [mini.write(place / f"metas-{mp}", mp) for mp in mini.even_mp]
    source = open_checkpoint(folders[1])
    for mp in (mp for mp in SOURCES if mp <= mini.n_heads):
        # Our even shards hold what Meta's do (test_reshard.py): one of them will do for every day.
        if every or mp == 1 or mp not in mini.even_mp:
            folders.append(place / f"ours-{mp}")
            write_meta_folder(source, folders[-1], mp)
    check_matrix(folders, whole_weights(mini), mini, mini.embedding_dim, every)


@pytest.mark.parametrize("name", MINIS)
def test_every_slice_of_a_miniature_is_that_of_the_uncut_weights(name: str, tmp_path: Path) -> None:
    # Layers are cut alike; the drill takes two.
    matrix_of_a_miniature(replace(MINIS[name], n_layers=1), tmp_path, every=False)


@pytest.mark.drill
@pytest.mark.parametrize("name", MINIS)
def test_every_slice_of_a_miniature_on_every_number_of_ranks(name: str, tmp_path: Path) -> None:
    matrix_of_a_miniature(MINIS[name], tmp_path, every=True)


def matrix_of_the_demo(place: Path, sources: tuple[int, ...], every: bool) -> None:
    sizes = Sizes(dim=128, n_layers=7, n_heads=8, n_kv_heads=4, multiple_of=64, vocabulary=2048)
    folders = [DEMO, *(place / f"ours-{mp}" for mp in sources)]
    for folder, mp in zip(folders[1:], sources, strict=True):
        write_meta_folder(open_checkpoint(DEMO), folder, mp)
    check_matrix(folders, merged_weights(DEMO, torch.bfloat16), sizes, 1, every, torch.bfloat16)


def test_every_slice_of_the_demo_checkpoint_is_that_of_the_uncut_weights(tmp_path: Path) -> None:
    matrix_of_the_demo(tmp_path, (1, 3, 8), every=False)


@pytest.mark.drill
def test_every_slice_of_the_demo_checkpoint_on_every_number_of_ranks(tmp_path: Path) -> None:
    matrix_of_the_demo(tmp_path, (1, 2, 3, 4, 6, 8), every=True)


@pytest.mark.parametrize(
    ("name", "mp"), [("12 heads, 4 KV heads", 12), ("16 heads, 2 KV heads", 16), ("16 heads, 8 KV heads", 16)]
)
def test_kv_heads_that_metas_files_hold_several_times_are_read_as_one(name: str, mp: int, tmp_path: Path) -> None:
    mini = MINIS[name]
    checkpoint = open_checkpoint(mini.write(tmp_path / "ckpt", mp))
    assert checkpoint.params.n_kv_heads == mini.n_kv_heads
    held = [piece.held for piece in checkpoint.pieces[f"{LAYER}.wk.weight"]]
    assert [held.count(one) for one in held] == [mp // mini.n_kv_heads] * mp
    whole = whole_weights(mini)
    for name in (f"{LAYER}.wk.weight", f"{LAYER}.wv.weight"):
        assert torch.equal(load(checkpoint, 0, 1)[name], whole[name])


# Dtypes.


@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("asked", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(("mp", "ranks"), [(1, 1), (2, 3), (4, 2)])
def test_a_slice_is_converted_as_torch_converts_it(
    stored: torch.dtype, asked: torch.dtype, mp: int, ranks: int, tmp_path: Path
) -> None:
    mini = MINIS["12 heads"]
    checkpoint = open_checkpoint(mini.write(tmp_path / "ckpt", mp, stored))
    whole = {name: weight.to(stored) for name, weight in whole_weights(mini).items()}
    for rank in range(ranks):
        wanted, found = own_part(whole, mini, 1, rank, ranks), load(checkpoint, rank, ranks, asked)
        for name in wanted:
            assert found[name].dtype == asked
            assert torch.equal(found[name], wanted[name].to(asked)), name


# Weights stay in their files.


def mapped(path: Path) -> list[range]:
    """Where in this process's memory a file is mapped."""
    lines = [line.split() for line in Path("/proc/self/maps").read_text().splitlines()]
    ends = [line[0].split("-") for line in lines if line[-1] == str(path)]
    return [range(int(start, 16), int(stop, 16)) for start, stop in ends]


def in_files(weights: dict[str, Tensor], checkpoint: Checkpoint) -> set[str]:
    """The weights whose numbers stand in a mapped file, from the first to the last."""
    places = [place for header in checkpoint.files for place in mapped(header.path)]

    def stays(weight: Tensor) -> bool:
        first, last = weight.data_ptr(), weight.data_ptr() + weight.nbytes - 1
        return any(first in place and last in place for place in places)

    return {name for name, weight in weights.items() if stays(weight)}


def anonymous_bytes() -> int:
    """Private memory of this process that is no file's."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(re.search(r"RssAnon:\s+(\d+) kB", status)[1])  # type: ignore[index]


LARGE = Mini(dim=512, n_heads=8, n_kv_heads=8, n_layers=4, embedding_dim=0, vocabulary=256, even_mp=(1, 2))


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """50 MB in one file."""
    return LARGE.write(tmp_path_factory.mktemp("large") / "ckpt", 1)


def test_on_a_cpu_nothing_is_copied_in_the_files_dtype(large: Path) -> None:
    checkpoint = open_checkpoint(large)
    load(checkpoint, 0, 1)
    before = anonymous_bytes()
    weights = load(checkpoint, 0, 1)
    # A tenth of the weights leaves room for the 2 MiB through which records are checked.
    assert anonymous_bytes() - before < sum(weight.nbytes for weight in weights.values()) / 10
    assert in_files(weights, checkpoint) == set(weights)


def test_only_what_is_cut_through_its_rows_is_copied(large: Path) -> None:
    checkpoint = open_checkpoint(large)
    for ranks in (2, 3):
        weights = load(checkpoint, 1, ranks)
        copied = set(weights) - in_files(weights, checkpoint)
        assert {name.split(".")[-2] for name in copied} == {"wo", "w2", "tok_embeddings"}


def test_shards_on_as_many_ranks_stay_in_their_files_whole(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(LARGE.write(tmp_path / "ckpt", 2))
    for rank in range(2):
        weights = load(checkpoint, rank, 2)
        assert in_files(weights, checkpoint) == set(weights)
        (path,) = {header.path for header in checkpoint.files[rank : rank + 1]}
        cut = [weight for name, weight in weights.items() if "norm" not in name]
        assert all(any(weight.data_ptr() in place for place in mapped(path)) for weight in cut)


def test_a_write_to_a_loaded_weight_does_not_reach_the_file(tmp_path: Path) -> None:
    folder = MINIS["12 heads"].write(tmp_path / "ckpt", 1)
    before = (folder / "consolidated.00.pth").read_bytes()
    weights = load(open_checkpoint(folder), 0, 1)
    weights["norm.weight"].zero_()
    assert (folder / "consolidated.00.pth").read_bytes() == before
    assert torch.equal(
        load(open_checkpoint(folder), 0, 1)["norm.weight"], whole_weights(MINIS["12 heads"])["norm.weight"]
    )


def header_of(path: Path) -> FileHeader:
    with path.open("rb") as file:
        return FileHeader(path, FileStamp.of(file), {})


def test_a_file_larger_than_the_memory_can_be_mapped_for_the_slices_that_a_rank_wants(tmp_path: Path) -> None:
    if Path("/proc/sys/vm/overcommit_memory").read_text().strip() == "2":
        pytest.skip("this system counts every mapping as memory")
    path = tmp_path / "consolidated.00.pth"
    with path.open("wb") as file:
        # A hole: it takes no room on the disk.
        file.truncate(4 * os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    MappedFile(header_of(path))


def test_a_file_that_cannot_be_mapped_is_refused_with_the_systems_reason(tmp_path: Path) -> None:
    """In a process of its own, whose addresses are limited."""
    path = tmp_path / "consolidated.00.pth"
    with path.open("wb") as file:
        file.truncate(2**32)
    script = (
        "import resource, sys\n"
        "from pathlib import Path\n"
        "from model.checkpoint.files import FileHeader, FileStamp\n"
        "from model.checkpoint.reading import MappedFile\n"
        "from parallel.errors import RefusedError\n"
        "path = Path(sys.argv[1])\n"
        "header = FileHeader(path, FileStamp.of(path.open('rb')), {})\n"
        "used = int(Path('/proc/self/statm').read_text().split()[0]) * resource.getpagesize()\n"
        "resource.setrlimit(resource.RLIMIT_AS, (used + 2**30, used + 2**30))\n"
        "try:\n    MappedFile(header)\n"
        "except RefusedError as refused:\n    print(refused)\n"
    )
    command = [sys.executable, "-c", script, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout.startswith(f"{path}: cannot be mapped"), done.stderr
    assert "Cannot allocate memory" in done.stdout


# The checking.


def flip(checkpoint: Checkpoint, name: str, file: int, place: int = 5) -> None:
    """Flip a bit of a weight's bytes."""
    entry, path = checkpoint.pieces[name][file].entry, checkpoint.files[file].path
    content = bytearray(path.read_bytes())
    content[entry.start + place] ^= 1
    path.write_bytes(content)


def refusals(folder: Path, ranks: int, hosts: list[range]) -> list[str]:
    """What each rank is told; empty where it loads."""
    told = []
    for rank in range(ranks):
        (neighbours,) = [host for host in hosts if rank in host]
        try:
            load(open_checkpoint(folder), rank, ranks, neighbours=neighbours)
            told.append("")
        except RefusedError as error:
            told.append(str(error))
    return told


def test_a_damaged_record_is_found_by_exactly_one_of_the_ranks_of_a_host(tmp_path: Path) -> None:
    mini = MINIS["12 heads"]
    folder = mini.write(tmp_path / "ckpt", 1)
    finders = []
    for name in whole_weights(mini):
        flip(open_checkpoint(folder), name, file=0)
        told = refusals(folder, 3, [range(3)])
        (found,) = [text for text in told if text]
        assert re.search(rf"consolidated\.00\.pth: {re.escape(name)} is damaged: record data/\d+ has CRC-32", found)
        assert found.endswith("; get the file again")
        finders.append(told.index(found))
        # Flipped back.
        flip(open_checkpoint(folder), name, file=0)
    assert refusals(folder, 3, [range(3)]) == ["", "", ""]
    # The work is shared.
    assert min(finders.count(rank) for rank in range(3)) >= 4


def test_every_host_checks_what_its_own_ranks_read_and_nothing_else(tmp_path: Path) -> None:
    folder = MINIS["12 heads"].write(tmp_path / "ckpt", 2)
    # Of two shards on four ranks, the second host's two ranks read the second alone, and norms of the first.
    flip(open_checkpoint(folder), f"{LAYER}.wq.weight", file=1)
    told = refusals(folder, 4, [range(0, 2), range(2, 4)])
    assert told[:2] == ["", ""]
    assert [text for text in told[2:] if text] != [] and "" in told[2:]
    # A host for each rank: whoever reads it finds it.
    alone = refusals(folder, 4, [range(rank, rank + 1) for rank in range(4)])
    assert [bool(text) for text in alone] == [False, False, True, True]


def test_of_norms_that_stand_in_every_file_each_rank_reads_its_own_and_others_the_first(tmp_path: Path) -> None:
    folder = MINIS["12 heads"].write(tmp_path / "ckpt", 2)
    flip(open_checkpoint(folder), "norm.weight", file=1)
    alone = [range(rank, rank + 1) for rank in range(3)]
    assert [bool(text) for text in refusals(folder, 2, alone)] == [False, True]
    assert refusals(folder, 3, alone) == ["", "", ""]


def test_a_file_that_is_cut_short_after_its_header_was_read_is_refused(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(MINIS["12 heads"].write(tmp_path / "ckpt", 1))
    cut_short(checkpoint.files[0].path, 0.7)
    with pytest.raises(RefusedError, match=r"consolidated\.00\.pth: was changed while it was being read"):
        load(checkpoint, 0, 1)


def test_a_file_that_is_changed_while_weights_are_read_is_refused(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(MINIS["12 heads"].write(tmp_path / "ckpt", 1))

    def change(done: int, total: int) -> None:
        with checkpoint.files[0].path.open("ab") as file:
            file.write(b"more")

    with pytest.raises(RefusedError, match=r"consolidated\.00\.pth: was changed while it was being read"):
        load_weights(checkpoint, 0, 1, torch.float32, CPU, progress=change)


def test_progress_counts_what_this_rank_checks_up_to_its_end(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(MINIS["12 heads"].write(tmp_path / "ckpt", 1))
    records = [piece.entry.record_bytes for pieces in checkpoint.pieces.values() for piece in pieces]
    ends = []
    for rank in range(3):
        told: list[tuple[int, int]] = []

        def tell(done: int, total: int, told: list[tuple[int, int]] = told) -> None:
            told.append((done, total))

        load_weights(checkpoint, rank, 3, torch.float32, CPU, range(3), tell)
        assert [done for done, _ in told] == sorted(done for done, _ in told)
        assert {total for _, total in told} == {told[-1][0]}
        ends.append(told[-1][0])
    assert sum(ends) == sum(records)
    # About as much for each: they differ by no more than the largest record.
    assert max(ends) - min(ends) <= max(records)


def test_threads_are_as_many_after_a_load_as_before(tmp_path: Path) -> None:
    folder = MINIS["12 heads"].write(tmp_path / "ckpt", 1)
    torch.set_num_threads(2)
    load(open_checkpoint(folder), 0, 1)
    assert torch.get_num_threads() == 2
    flip(open_checkpoint(folder), "norm.weight", file=0)
    with pytest.raises(RefusedError, match=r"norm\.weight is damaged"):
        load(open_checkpoint(folder), 0, 1)
    assert torch.get_num_threads() == 2


@cache
def a_check(number: int, nbytes: int) -> Check:
    header = FileHeader(Path(f"consolidated.{number % 3:02d}.pth"), FileStamp(0, 0, 0), {})
    return Check(header, f"data/{number}", 0, nbytes, 0, ())


@given(
    sizes=st.lists(st.integers(1, 1000), max_size=30),
    wishes=st.lists(st.sets(st.integers(0, 29)), min_size=1, max_size=8),
)
def test_each_record_is_checked_once_by_one_that_wants_it(sizes: list[int], wishes: list[set[int]]) -> None:
    checks = {(c.header.path, c.record): c for c in (a_check(number, nbytes) for number, nbytes in enumerate(sizes))}
    keys = list(checks)
    wanted = [{keys[number] for number in wish if number < len(keys)} for wish in wishes]
    dealt = deal_checks(checks, wanted)
    assert len(dealt) == len(wishes)
    for mine, keys_wanted in zip(dealt, wanted, strict=True):
        assert {(check.header.path, check.record) for check in mine} <= keys_wanted
    given_out = [id(check) for mine in dealt for check in mine]
    assert sorted(given_out) == sorted(id(checks[key]) for key in set().union(*wanted))
    # The same on every process: nothing depends on the order of a set.
    assert deal_checks(dict(reversed(checks.items())), [{*reversed(list(keys))} for keys in wanted]) == dealt


@given(sizes=st.lists(st.integers(1, 1000), min_size=1, max_size=30), ranks=st.integers(1, 8))
def test_where_all_want_all_each_checks_about_as_many_bytes(sizes: list[int], ranks: int) -> None:
    checks = {(c.header.path, c.record): c for c in (a_check(number, nbytes) for number, nbytes in enumerate(sizes))}
    loads = [sum(check.nbytes for check in mine) for mine in deal_checks(checks, [set(checks)] * ranks)]
    assert max(loads) - min(loads) <= max(sizes)


# Reading in one process, as `reshard` does.


def test_a_reader_gives_any_slice_of_any_weight(tmp_path: Path) -> None:
    mini = MINIS["12 heads"]
    whole = whole_weights(mini)
    checkpoint = open_checkpoint(mini.write(tmp_path / "ckpt", 4))
    with open_weights(checkpoint) as reader:
        for weight in checkpoint.weights:
            dim = weight.cut or 0
            for own in checkpoint.split(7).width:
                part = type(own)(own.start % weight.length, max(own.start % weight.length + 1, weight.length - 3))
                wanted = whole[weight.name].narrow(dim, part.start, part.size)
                assert torch.equal(reader.read(weight, part), wanted), weight.name


def test_a_reader_refuses_a_file_that_was_changed_meanwhile(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(MINIS["12 heads"].write(tmp_path / "ckpt", 1))
    weight = checkpoint.weights[0]

    def read_and_change() -> None:
        with open_weights(checkpoint) as reader:
            reader.read(weight, weight.slices(checkpoint.split(1))[0])
            flip(checkpoint, weight.name, file=0)

    with pytest.raises(RefusedError, match=r"consolidated\.00\.pth: was changed while it was being read"):
        read_and_change()
