"""Cutting a checkpoint anew: the same numbers, to the bit, whatever the way."""

import fcntl
import json
import os
import re
from pathlib import Path

import pytest
import torch

from model.checkpoint.opening import open_checkpoint
from model.checkpoint.reshard import write_meta_folder
from parallel.errors import RefusedError
from tests.checkpoints import whole_weights
from tests.minis import MINIS, own_part
from tests.reference import merged_weights
from tests.unit.model.conftest import TINY, MakeFolder


def cut(source: Path, destination: Path, mp: int, embedding_dim: int | None = None) -> Path:
    checkpoint = open_checkpoint(source)
    if embedding_dim is not None:
        checkpoint = checkpoint.with_embedding_dim(embedding_dim)
    write_meta_folder(checkpoint, destination, mp)
    return destination


def shards_of(folder: Path) -> list[dict[str, torch.Tensor]]:
    return [torch.load(path, weights_only=True) for path in sorted(folder.glob("consolidated.*.pth"))]


def same_weights(one: Path, other: Path) -> bool:
    mine, theirs = merged_weights(one), merged_weights(other)
    return list(mine) == list(theirs) and all(torch.equal(mine[name], theirs[name]) for name in mine)


def same_shards(one: Path, other: Path) -> bool:
    names = sorted(path.name for path in one.glob("consolidated.*.pth"))
    return names == sorted(path.name for path in other.glob("consolidated.*.pth")) and all(
        (one / name).read_bytes() == (other / name).read_bytes() for name in [*names, "shards.json", "params.json"]
    )


@pytest.mark.parametrize("embedding_dim", [0, 1])
def test_one_to_two_and_back_to_one_is_the_same_to_the_bit(
    make_folder: MakeFolder, tmp_path: Path, embedding_dim: int
) -> None:
    source = make_folder("source", n_kv_heads=2)
    two = cut(source, tmp_path / "two", 2, embedding_dim)
    one = cut(two, tmp_path / "one", 1)
    assert same_weights(source, two)
    assert same_weights(source, one)
    assert same_shards(one, cut(source, tmp_path / "written-by-us", 1, embedding_dim))


@pytest.mark.parametrize("embedding_dim", [0, 1])
def test_two_to_four_and_back_to_two_is_the_same_to_the_bit(
    make_folder: MakeFolder, tmp_path: Path, embedding_dim: int
) -> None:
    source = make_folder("source", mp=2, embedding_dim=embedding_dim)
    four = cut(source, tmp_path / "four", 4)
    two = cut(four, tmp_path / "two", 2)
    assert same_weights(source, four)
    assert same_shards(two, cut(source, tmp_path / "written-by-us", 2))
    for mine, theirs in zip(shards_of(two), shards_of(source), strict=True):
        assert all(torch.equal(mine[name], theirs[name]) for name in theirs)


# Uneven cuts, and KV heads that stand on several ranks.
WAYS = [
    ("12 heads", 1, 3),
    ("12 heads", 2, 6),
    ("12 heads", 4, 12),
    ("12 heads, 4 KV heads", 12, 5),
    ("16 heads, 2 KV heads", 1, 6),
    ("16 heads, 8 KV heads", 8, 16),
    ("16 heads, 8 KV heads", 16, 3),
    ("24 heads, 8 KV heads", 8, 16),
    ("26 heads", 1, 8),
]


@pytest.mark.parametrize(("name", "mp", "between"), WAYS, ids=[f"{name}: {a}-{b}-{a}" for name, a, b in WAYS])
def test_there_and_back_through_an_uneven_cut_is_the_same_to_the_bit(
    tmp_path: Path, name: str, mp: int, between: int
) -> None:
    mini = MINIS[name]
    embedding_dim = mini.embedding_dim if mp == 1 else None
    source = mini.write(tmp_path / "source", mp)
    there = cut(source, tmp_path / "there", between, embedding_dim)
    back = cut(there, tmp_path / "back", mp)
    for rank, shard in enumerate(shards_of(there)):
        wanted = own_part(whole_weights(mini), mini, mini.embedding_dim, rank, between)
        assert list(shard) == list(wanted)
        assert all(torch.equal(shard[weight], wanted[weight]) for weight in wanted), rank
    for mine, theirs in zip(shards_of(back), shards_of(source), strict=True):
        assert all(torch.equal(mine[weight], theirs[weight]) for weight in theirs)
    assert same_shards(back, cut(source, tmp_path / "written-by-us", mp, embedding_dim))
    # And what was written can be read.
    assert open_checkpoint(back).params == open_checkpoint(source).params
    assert open_checkpoint(back).embedding_dim == mini.embedding_dim


@pytest.mark.parametrize("mp", [2, 3, 8])
def test_the_same_input_gives_the_same_files_byte_for_byte(tmp_path: Path, mp: int) -> None:
    source = MINIS["12 heads"].write(tmp_path / "source", 2)
    one, other = (cut(source, tmp_path / name, mp) for name in ("one", "other"))
    assert sorted(os.listdir(one)) == sorted(os.listdir(other))
    assert all((one / name).read_bytes() == (other / name).read_bytes() for name in os.listdir(one))


@pytest.mark.parametrize(
    ("name", "mp", "n_kv_heads"),
    [
        # As Meta counts where it is Meta's cut: once for each file that holds a head.
        ("16 heads, 8 KV heads", 8, 8),
        ("16 heads, 8 KV heads", 16, 16),
        ("16 heads, 2 KV heads", 8, 8),
        ("12 heads, 4 KV heads", 12, 12),
        # Else as it is.
        ("16 heads, 8 KV heads", 3, 8),
        ("16 heads, 8 KV heads", 12, 8),
        ("24 heads, 8 KV heads", 12, 8),
    ],
)
def test_params_json_counts_kv_heads_as_meta_does_only_where_the_cut_is_metas(
    tmp_path: Path, name: str, mp: int, n_kv_heads: int
) -> None:
    mini = MINIS[name]
    folder = cut(mini.write(tmp_path / "source", 2), tmp_path / "cut", mp)
    params = json.loads((folder / "params.json").read_text())
    assert params == {**mini.params(), "vocab_size": mini.vocabulary, "n_kv_heads": n_kv_heads}
    checkpoint = open_checkpoint(folder)
    assert checkpoint.params.n_kv_heads == mini.n_kv_heads
    stored = sum(piece.held.size for piece in checkpoint.pieces["layers.0.attention.wk.weight"])
    if checkpoint.split(checkpoint.mp).meta:
        assert stored == n_kv_heads * checkpoint.params.head_dim


@pytest.mark.parametrize(("embedding_dim", "shape"), [(0, (12, 32)), (1, (24, 16))])
def test_each_shard_holds_the_ranks_slice_as_torch_chunk_cuts_it(
    make_folder: MakeFolder, tmp_path: Path, embedding_dim: int, shape: tuple[int, int]
) -> None:
    two = cut(make_folder("source"), tmp_path / "two", 2, embedding_dim)
    expected = shards_of(make_folder("expected", mp=2, embedding_dim=embedding_dim))
    for mine, theirs in zip(shards_of(two), expected, strict=True):
        assert mine["tok_embeddings.weight"].shape == shape
        assert list(mine) == list(theirs)
        assert all(torch.equal(mine[name], theirs[name]) for name in theirs)
    assert open_checkpoint(two).embedding_dim == embedding_dim


def test_the_dtype_of_each_weight_stays(make_folder: MakeFolder, tmp_path: Path) -> None:
    source = make_folder("source")
    state = torch.load(source / "consolidated.00.pth", weights_only=True)
    for name in state:
        state[name] = state[name].to(torch.float32 if "norm" in name else torch.bfloat16)
    torch.save(state, source / "consolidated.00.pth")
    for shard in shards_of(cut(source, tmp_path / "two", 2)):
        assert all(shard[name].dtype == state[name].dtype for name in state)


def test_small_files_come_along_and_the_source_is_left_as_it_was(make_folder: MakeFolder, tmp_path: Path) -> None:
    source = make_folder("source")
    (source / "tokenizer.model").write_bytes(b"\x0a\x00tokens")
    before = {path.name: path.read_bytes() for path in source.iterdir()}
    two = cut(source, tmp_path / "two", 2)
    assert {path.name: path.read_bytes() for path in source.iterdir()} == before
    assert (two / "tokenizer.model").read_bytes() == b"\x0a\x00tokens"
    assert json.loads((two / "params.json").read_text()) == TINY
    assert sorted(os.listdir(tmp_path)) == ["source", "two"]


def test_swapped_shards_of_ours_are_told_apart_by_their_checksums(make_folder: MakeFolder, tmp_path: Path) -> None:
    two = cut(make_folder("source"), tmp_path / "two", 2)
    first, second, aside = two / "consolidated.00.pth", two / "consolidated.01.pth", two / "aside"
    first.rename(aside)
    second.rename(first)
    aside.rename(second)
    with pytest.raises(RefusedError, match="the shards are swapped: rename them"):
        open_checkpoint(two)


@pytest.mark.parametrize(
    ("changes", "mp", "sentence"),
    [
        ({}, 5, "cannot cut 4 heads over 5 ranks; choose an MP of 4 or fewer"),
        ({}, 8, "cannot cut 4 heads over 8 ranks; choose an MP of 4 or fewer"),
        ({"n_kv_heads": 1}, 8, "cannot cut 4 heads over 8 ranks; choose an MP of 4 or fewer"),
    ],
)
def test_more_ranks_than_heads_are_refused_with_the_most_there_can_be_and_nothing_is_written(
    make_folder: MakeFolder, tmp_path: Path, changes: dict[str, int], mp: int, sentence: str
) -> None:
    source = make_folder("source", **changes)
    with pytest.raises(RefusedError, match=f"^{re.escape(sentence)}$"):
        cut(source, tmp_path / "cut", mp)
    assert os.listdir(tmp_path) == ["source"]


def test_a_place_that_is_taken_or_missing_is_refused(make_folder: MakeFolder, tmp_path: Path) -> None:
    source = make_folder("source")
    with pytest.raises(RefusedError, match=f"{source}: is there already; give a folder that does not exist"):
        cut(source, source, 2)
    with pytest.raises(RefusedError, match=f"{tmp_path / 'no'}: does not exist; make it first"):
        cut(source, tmp_path / "no" / "two", 2)


# What killed runs leave.


@pytest.mark.parametrize("name", ["dst", "dst[1]", "a*", "dst with spaces"])
def test_what_a_killed_run_left_is_removed_by_the_next_and_nothing_else(
    make_folder: MakeFolder, tmp_path: Path, name: str
) -> None:
    source = make_folder("source")
    for left in (f".{name}.partial-abc", f".{name}2.partial-abc", ".another.partial-abc"):
        (tmp_path / left).mkdir()
        (tmp_path / left / ".consolidated.00.pth.partial").write_bytes(b"some")
    cut(source, tmp_path / name, 2)
    assert sorted(os.listdir(tmp_path)) == sorted([".another.partial-abc", f".{name}2.partial-abc", name, "source"])


def test_what_another_run_is_writing_is_left_to_it(make_folder: MakeFolder, tmp_path: Path) -> None:
    source = make_folder("source")
    other = tmp_path / ".dst.partial-other"
    other.mkdir()
    descriptor = os.open(other, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    try:
        cut(source, tmp_path / "dst", 2)
        assert other.is_dir()
    finally:
        os.close(descriptor)


def test_a_hidden_name_that_leads_nowhere_is_passed_over(make_folder: MakeFolder, tmp_path: Path) -> None:
    source = make_folder("source")
    # As if another run had removed it after it was seen.
    (tmp_path / ".dst.partial-gone").symlink_to("nowhere")
    cut(source, tmp_path / "dst", 2)
    assert open_checkpoint(tmp_path / "dst").mp == 2


def test_a_damaged_weight_is_named_and_nothing_is_left(make_folder: MakeFolder, tmp_path: Path) -> None:
    source = make_folder("source")
    path = source / "consolidated.00.pth"
    entry = open_checkpoint(source).files[0].tensors["layers.1.attention.wo.weight"]
    content = bytearray(path.read_bytes())
    content[entry.start + 5] ^= 1
    path.write_bytes(content)
    with pytest.raises(RefusedError, match=r"consolidated\.00\.pth: layers\.1\.attention\.wo\.weight is damaged"):
        cut(source, tmp_path / "two", 2)
    assert os.listdir(tmp_path) == ["source"]


def test_progress_ends_at_the_bytes_that_were_written(make_folder: MakeFolder, tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    checkpoint = open_checkpoint(make_folder("source"))
    write_meta_folder(checkpoint, tmp_path / "two", 2, lambda done, total: told.append((done, total)))
    numbers = sum(tensor.numel() for shard in shards_of(tmp_path / "two") for tensor in shard.values())
    assert told[-1] == (4 * numbers, 4 * numbers)
    assert [done for done, _ in told] == sorted({done for done, _ in told})
