"""shards.json: what is written, what is read back, and that no edit of it changes a weight unseen."""

import contextlib
import copy
import json
import math
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from model.checkpoint.manifest import read_manifest
from model.checkpoint.opening import open_checkpoint
from model.checkpoint.reading import open_weights
from model.checkpoint.reshard import write_meta_folder
from parallel.errors import RefusedError
from parallel.slices import Slice
from tests.checkpoints import SHARD, whole_weights
from tests.minis import MINIS, Mini

WQ, WK, WV, WO = (f"layers.0.attention.{part}.weight" for part in ("wq", "wk", "wv", "wo"))
# KV heads that stand on several ranks, unevenly: 8 query heads on 3 ranks are 3, 3 and 2, with 4 numbers a head.
SMALL = Mini(dim=32, n_layers=1, n_heads=8, n_kv_heads=2, vocabulary=40)
SHARDS = 3


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("manifest")
    write_meta_folder(open_checkpoint(SMALL.write(place / "source", 1)), place / "ckpt", SHARDS)
    return place / "ckpt"


@pytest.fixture
def folder(written: Path, tmp_path: Path) -> Path:
    """The written folder under another name, its shards.json free to be edited."""
    place = tmp_path / "ckpt"
    place.mkdir()
    for path in written.iterdir():
        if path.name != "shards.json":
            (place / path.name).symlink_to(path)
    (place / "shards.json").write_text((written / "shards.json").read_text())
    return place


def test_the_list_names_each_shard_with_its_checksums_and_its_slices(written: Path) -> None:
    listed = json.loads((written / "shards.json").read_text())
    assert {key: listed[key] for key in listed if key != "shards"} == {"format": 2, "mp": SHARDS}
    for rank, shard in enumerate(listed["shards"]):
        assert list(shard) == ["file", "crc32", "slices"]
        assert shard["file"] == SHARD.format(rank)
        with zipfile.ZipFile(written / shard["file"]) as archive:
            sums = [archive.getinfo(f"archive/data/{number}").CRC for number in range(len(shard["crc32"]))]
        assert shard["crc32"] == dict(zip(whole_weights(SMALL), sums, strict=True))
        assert list(shard["slices"]) == [name for name in whole_weights(SMALL) if "norm" not in name]
    slices = [[shard["slices"][name] for shard in listed["shards"]] for name in (WQ, WK, WV)]
    assert slices == [[[0, 12], [12, 24], [24, 32]], [[0, 4], [0, 8], [4, 8]], [[0, 4], [0, 8], [4, 8]]]


def test_what_is_written_is_read_back(written: Path) -> None:
    checkpoint = open_checkpoint(written)
    listed = read_manifest(written, checkpoint.files)
    assert listed is not None
    for rank, (shard, header) in enumerate(zip(listed, checkpoint.files, strict=True)):
        assert (shard.file, shard.crc32) == (header.path.name, header.checksums)
        cut = [weight for weight in checkpoint.weights if weight.cut is not None]
        assert shard.slices == {weight.name: checkpoint.pieces[weight.name][rank].held for weight in cut}


def test_without_a_list_there_is_none(written: Path, tmp_path: Path) -> None:
    assert read_manifest(tmp_path, open_checkpoint(written).files) is None


def test_format_1_which_has_no_slices_is_still_read_as_an_even_cut(tmp_path: Path) -> None:
    folder = tmp_path / "ckpt"
    write_meta_folder(open_checkpoint(MINIS["12 heads"].write(tmp_path / "source", 2)), folder, 4)
    listed = json.loads((folder / "shards.json").read_text())
    before = open_checkpoint(folder)
    listed["format"] = 1
    for shard in listed["shards"]:
        del shard["slices"]
    (folder / "shards.json").write_text(json.dumps(listed))
    after = open_checkpoint(folder)
    assert after.pieces == before.pieces
    assert not any("shards.json" in note for note in after.notes)
    listed["shards"][0]["crc32"]["norm.weight"] ^= 1
    (folder / "shards.json").write_text(json.dumps(listed))
    with pytest.raises(RefusedError, match=r"consolidated\.00\.pth: norm\.weight is not what shards\.json lists"):
        open_checkpoint(folder)


# Edits.

Edit = Callable[[dict[str, Any]], object]


def edited(folder: Path, edit: Edit) -> None:
    path = folder / "shards.json"
    listed = json.loads(path.read_text())
    edit(listed)
    path.write_text(json.dumps(listed))


def set_slice(rank: int, name: str, value: object) -> Edit:
    return lambda listed: listed["shards"][rank]["slices"].__setitem__(name, value)


def swap_slices(one: int, other: int, name: str) -> Edit:
    def swap(listed: dict[str, Any]) -> None:
        mine, theirs = (listed["shards"][rank]["slices"] for rank in (one, other))
        mine[name], theirs[name] = theirs[name], mine[name]

    return swap


def make_up(name: str, length: int, dim: int = 0) -> str:
    return rf"shards\.json: the slices of {re.escape(name)} do not make up its {length} numbers along dimension {dim}; "


REFUSED: dict[str, tuple[Edit, str]] = {
    "a slice that leaves a gap": (set_slice(1, WQ, [13, 24]), make_up(WQ, 32)),
    "a slice that begins too early": (set_slice(1, WQ, [11, 24]), make_up(WQ, 32)),
    "another border between two shards": (
        lambda listed: [
            edit(listed)
            for part in ("w1", "w2", "w3")
            for rank, ends in ((0, [0, 31]), (1, [31, 64]))
            for edit in [set_slice(rank, f"layers.0.feed_forward.{part}.weight", ends)]
        ],
        r"00\.pth: layers\.0\.feed_forward\.w1\.weight has shape \[32, 32\]; .* give \[31, 32\]",
    ),
    "another border for one weight alone": (
        lambda listed: [set_slice(0, WO, [0, 8])(listed), set_slice(1, WO, [8, 24])(listed)],
        make_up(WO, 32, 1),
    ),
    "a slice beyond the end": (set_slice(2, WQ, [24, 33]), make_up(WQ, 32)),
    "a slice of nothing": (set_slice(2, WK, [8, 8]), make_up(WK, 8)),
    "a slice that runs backwards": (set_slice(0, WQ, [12, 0]), make_up(WQ, 32)),
    "a slice below zero": (set_slice(0, WQ, [-1, 12]), make_up(WQ, 32)),
    "a slice that another shard has": (set_slice(1, WQ, [0, 12]), make_up(WQ, 32)),
    "one end of a slice": (set_slice(1, WQ, [12]), r"shards\.json: is not a list of shards as shardrun writes it"),
    "a word for a slice": (set_slice(1, WQ, "12-24"), r"shards\.json: is not a list of shards as shardrun writes it"),
    "a slice without end": (set_slice(1, WQ, [12, math.inf]), r"shards\.json: is not a list of shards as shardrun"),
    "no slice of one weight": (lambda listed: listed["shards"][1]["slices"].pop(WQ), make_up(WQ, 32)),
    "no slices of one shard": (
        lambda listed: listed["shards"][1].pop("slices"),
        r"shards\.json: is not a list of shards as shardrun writes it \(KeyError: 'slices'\)",
    ),
    "swapped slices of the same size": (swap_slices(0, 1, WQ), make_up(WQ, 32)),
    "swapped slices of the same size along the other dimension": (
        swap_slices(0, 1, WO),
        make_up(WO, 32, 1),
    ),
    "swapped slices of a KV head": (swap_slices(0, 2, WK), rf"shards\.json: the slices of {re.escape(WK)} "),
    "a KV head that the queries do not use": (set_slice(2, WV, [0, 4]), rf"the slices of {re.escape(WV)} "),
    "more KV heads than there are": (set_slice(2, WK, [4, 12]), r"shards\.json: lists 3 KV heads, but n_kv_heads"),
    "another format": (lambda listed: listed.update(format=3), r"has format 3; this version of shardrun knows 1 and 2"),
    "no format": (lambda listed: listed.pop("format"), r"is not a list of shards as shardrun writes it"),
    "no shards": (lambda listed: listed.pop("shards"), r"is not a list of shards as shardrun writes it"),
    "one shard too few": (lambda listed: listed["shards"].pop(), r"lists consolidated\.00\.pth, .* but the folder"),
    "a shard's name": (
        lambda listed: listed["shards"][0].update(file="consolidated.09.pth"),
        r"lists .*consolidated\.09\.pth but the folder holds",
    ),
    "names of two shards swapped": (
        lambda listed: [listed["shards"][rank].update(file=SHARD.format(1 - rank)) for rank in (0, 1)],
        r"holds what shards\.json lists for consolidated\.01\.pth; the shards are swapped",
    ),
    "a checksum": (
        lambda listed: listed["shards"][2]["crc32"].update({WV: 7}),
        r"02\.pth: layers\.0\.attention\.wv\.weight is not what shards\.json lists \(CRC-32 \d+, listed 7\)",
    ),
    "a checksum without end": (
        lambda listed: listed["shards"][2]["crc32"].update({WV: math.inf}),
        r"shards\.json: is not a list of shards as shardrun writes it",
    ),
    "no checksum": (
        lambda listed: listed["shards"][2]["crc32"].pop(WV),
        r"02\.pth: layers\.0\.attention\.wv\.weight is not what shards\.json lists \(CRC-32 \d+, listed None\)",
    ),
    "a checksum of nothing": (
        lambda listed: listed["shards"][2]["crc32"].update({"nothing": 7}),
        r"consolidated\.02\.pth: nothing is not what shards\.json lists \(CRC-32 None, listed 7\)",
    ),
}


@pytest.mark.parametrize(("edit", "sentence"), REFUSED.values(), ids=REFUSED)
def test_an_edit_is_refused_before_a_weight_is_read(edit: Edit, sentence: str, folder: Path) -> None:
    edited(folder, edit)
    with pytest.raises(RefusedError, match=sentence) as refused:
        open_checkpoint(folder)
    assert "\n" not in str(refused.value)


# What would clear a terminal and write a line of its own.
EVIL = "\x1b[2J\nshardrun: all is well"


@pytest.mark.parametrize(
    "edit",
    [
        lambda listed: listed["shards"][0].update(file=EVIL),
        lambda listed: listed["shards"][0]["crc32"].update({EVIL: 3}),
        lambda listed: listed.update(format=EVIL),
    ],
    ids=["a file's name", "a weight's name", "a format"],
)
def test_control_characters_of_a_name_are_shown_and_not_sent_to_the_terminal(edit: Edit, folder: Path) -> None:
    edited(folder, edit)
    with pytest.raises(RefusedError, match=r"x1b\[2J") as refused:
        open_checkpoint(folder)
    assert str(refused.value).isprintable()


def changed_weight(folder: Path) -> str | None:
    """The first weight that is not the written one; None where all are."""
    checkpoint, whole = open_checkpoint(folder), whole_weights(SMALL)
    with open_weights(checkpoint) as reader:
        for weight in checkpoint.weights:
            if not torch.equal(reader.read(weight, Slice(0, weight.length)), whole[weight.name]):
                return weight.name
    return None


def spots(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The ways to every value inside a JSON value."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(spot for key, inner in items for spot in spots(inner, (*path, key)))]


def put(value: Any, spot: tuple[Any, ...], new: Any) -> Any:
    if not spot:
        return new
    value[spot[0]] = put(value[spot[0]], spot[1:], new)
    return value


def at(value: Any, spot: tuple[Any, ...]) -> Any:
    return at(value[spot[0]], spot[1:]) if spot else value


JUNK = st.none() | st.booleans() | st.integers(-5, 45) | st.floats() | st.text(max_size=4) | st.just([]) | st.just({})


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_no_edit_of_a_value_or_two_changes_a_weight_unseen(data: st.DataObject, folder: Path, written: Path) -> None:
    listed = json.loads((written / "shards.json").read_text())
    places = spots(listed)
    for _ in range(data.draw(st.integers(1, 2))):
        spot, other = data.draw(st.sampled_from(places)), data.draw(st.sampled_from(places))
        try:
            # Another value of the same list, or anything.
            new = data.draw(st.just(copy.deepcopy(at(listed, other))) | JUNK)
            listed = put(listed, spot, new)
        except (KeyError, IndexError, TypeError):
            continue  # the first edit took the second's place away
    (folder / "shards.json").write_text(json.dumps(listed))
    try:
        changed = changed_weight(folder)
    except RefusedError:
        return
    assert changed is None


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.binary(max_size=60) | st.text(max_size=60).map(str.encode))
def test_whatever_stands_in_the_file_only_a_refusal_comes_out(content: bytes, folder: Path) -> None:
    (folder / "shards.json").write_bytes(content)
    with pytest.raises(RefusedError, match=r"shards\.json: "):
        open_checkpoint(folder)


def test_every_pair_of_slices_that_differ_and_are_swapped_is_told(folder: Path, written: Path) -> None:
    listed = json.loads((written / "shards.json").read_text())
    swapped = [(name, one, other) for name in listed["shards"][0]["slices"] for one, other in ((0, 1), (0, 2), (1, 2))]
    unseen = []
    for name, one, other in swapped:
        assert listed["shards"][one]["slices"][name] != listed["shards"][other]["slices"][name]
        changed = copy.deepcopy(listed)
        swap_slices(one, other, name)(changed)
        (folder / "shards.json").write_text(json.dumps(changed))
        with contextlib.suppress(RefusedError):
            unseen.append((name, one, other, changed_weight(folder)))
    assert unseen == []


def test_a_list_that_is_nested_without_end_is_refused(folder: Path) -> None:
    (folder / "shards.json").write_text('{"format": 2, "shards": ' + "[" * 100_000)
    with pytest.raises(RefusedError, match=r"shards\.json: is not a list of shards as shardrun writes it"):
        open_checkpoint(folder)
