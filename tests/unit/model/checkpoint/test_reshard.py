"""Cutting a checkpoint anew: the same numbers, to the bit, whatever the way."""

import json
import os
import re
from pathlib import Path

import pytest
import torch

from model.checkpoint.meta_folder import open_checkpoint
from model.checkpoint.reshard import reshard
from parallel.errors import RefusedError
from tests.reference import merged_weights
from tests.unit.model.conftest import TINY, MakeFolder


def cut(source: Path, destination: Path, mp: int, embedding_dim: int | None = None) -> Path:
    checkpoint = open_checkpoint(source)
    if embedding_dim is not None:
        checkpoint = checkpoint.with_embedding_dim(embedding_dim)
    reshard(checkpoint, destination, mp)
    return destination


def shards_of(folder: Path) -> list[dict[str, torch.Tensor]]:
    return [torch.load(path, weights_only=True) for path in sorted(folder.glob("consolidated.*.pth"))]


def same_weights(one: Path, other: Path) -> bool:
    mine, theirs = merged_weights(one), merged_weights(other)
    return list(mine) == list(theirs) and all(torch.equal(mine[name], theirs[name]) for name in mine)


def same_shards(one: Path, other: Path) -> bool:
    names = sorted(path.name for path in one.glob("consolidated.*.pth"))
    return names == sorted(path.name for path in other.glob("consolidated.*.pth")) and all(
        (one / name).read_bytes() == (other / name).read_bytes() for name in names
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
    assert same_shards(one, cut(source, tmp_path / "written-by-us", 1))


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
        ({}, 3, "cannot split 32 embedding dimensions over 3 ranks evenly; choose an MP of 1, 2, 4, 8, 16 or 32"),
        ({}, 8, "cannot split 4 heads over 8 ranks evenly; choose an MP of 1, 2 or 4"),
        ({"n_kv_heads": 2}, 4, "cannot split 2 KV heads over 4 ranks evenly; choose an MP of 1 or 2"),
        ({"n_kv_heads": 1}, 2, "cannot split 1 KV heads over 2 ranks evenly; choose an MP of 1"),
    ],
)
def test_an_uneven_cut_is_refused_with_the_sizes_that_divide_and_writes_nothing(
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


def test_a_damaged_weight_is_named_and_nothing_is_left(make_folder: MakeFolder, tmp_path: Path) -> None:
    source = make_folder("source")
    path = source / "consolidated.00.pth"
    entry = open_checkpoint(source).shards[0].tensors["layers.1.attention.wo.weight"]
    content = bytearray(path.read_bytes())
    content[entry.start + 5] ^= 1
    path.write_bytes(content)
    with pytest.raises(RefusedError, match=r"consolidated\.00\.pth: layers\.1\.attention\.wo\.weight is damaged"):
        cut(source, tmp_path / "two", 2)
    assert os.listdir(tmp_path) == ["source"]


def test_progress_ends_at_the_bytes_that_were_written(make_folder: MakeFolder, tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    reshard(open_checkpoint(make_folder("source")), tmp_path / "two", 2, lambda done, total: told.append((done, total)))
    numbers = sum(tensor.numel() for shard in shards_of(tmp_path / "two") for tensor in shard.values())
    assert told[-1] == (4 * numbers, 4 * numbers)
    assert [done for done, _ in told] == sorted({done for done, _ in told})
