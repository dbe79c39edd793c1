"""What a folder of shards is read as, from its headers alone: sizes, who holds what, and what does not fit."""

import re
import shutil
from pathlib import Path

import pytest
import torch
from torch import Tensor

from model.checkpoint.checkpoint import Checkpoint
from model.checkpoint.meta_folder import open_meta_folder
from model.checkpoint.opening import open_checkpoint
from model.checkpoint.reshard import write_meta_folder
from parallel.errors import RefusedError
from parallel.slices import Slice
from tests.checkpoints import SHARD, edit_params, edit_shard, whole_weights
from tests.minis import MINIS, Mini

WK, WQ = "layers.0.attention.wk.weight", "layers.0.attention.wq.weight"
MPS = (1, 2, 3, 4, 6, 8, 12, 16)


def held(checkpoint: Checkpoint, name: str) -> list[tuple[int, int]]:
    return [(piece.held.start, piece.held.stop) for piece in checkpoint.pieces[name]]


@pytest.mark.parametrize("name", MINIS)
def test_metas_own_folders_are_read_as_even_cuts(name: str, tmp_path: Path) -> None:
    mini = MINIS[name]
    whole = whole_weights(mini)
    for mp in mini.even_mp:
        checkpoint = open_checkpoint(mini.write(tmp_path / str(mp), mp))
        assert (checkpoint.layout, checkpoint.mp, checkpoint.dtype) == ("meta", mp, "float32")
        assert checkpoint.params.n_kv_heads == mini.n_kv_heads
        assert checkpoint.params.vocab_size == mini.vocabulary
        # A single file does not say how its embedding would be cut.
        assert checkpoint.embedding_dim == (1 if mp == 1 else mini.embedding_dim)
        assert list(checkpoint.pieces) == [weight.name for weight in checkpoint.weights]
        rows = len(whole[WQ]) // mp
        assert held(checkpoint, WQ) == [(rank * rows, (rank + 1) * rows) for rank in range(mp)]
        kv_rows, copies = mini.head_dim * max(mini.n_kv_heads // mp, 1), max(mp // mini.n_kv_heads, 1)
        firsts = [rank // copies * kv_rows for rank in range(mp)]
        assert held(checkpoint, WK) == [(first, first + kv_rows) for first in firsts]
        assert held(checkpoint, "norm.weight") == [(0, mini.dim)] * mp


def opened(folder: Path) -> Checkpoint | str:
    """The checkpoint, or why it is refused."""
    try:
        return open_checkpoint(folder)
    except RefusedError as refused:
        return str(refused)


@pytest.mark.parametrize("name", MINIS)
def test_without_shards_json_a_cut_is_read_as_what_it_is_or_refused(name: str, tmp_path: Path) -> None:
    mini = MINIS[name]
    source = open_checkpoint(mini.write(tmp_path / "source", 2))
    read = []
    for mp in (mp for mp in MPS if mp <= mini.n_heads):
        folder = tmp_path / str(mp)
        write_meta_folder(source, folder, mp)
        listed = open_checkpoint(folder)
        (folder / "shards.json").unlink()
        found = opened(folder)
        if isinstance(found, str):
            no_even_cut = (
                rf"cannot split \d+ [\w -]+ over {mp} ranks evenly; choose an MP of .*, and the folder holds {mp} "
                r"shards without a shards\.json that says how they are cut; params\.json and the shards are of "
                "different models$"
            )
            no_even_rows = (
                r"its shards are cut unevenly, which only shards\.json could describe, and there is none; get"
            )
            assert re.search(rf"(params\.json: {no_even_cut}|{folder}: {no_even_rows})", found)
            continue
        read.append(mp)
        assert found.params == listed.params
        assert mp == 1 or found.embedding_dim == listed.embedding_dim
        if mp > 1:
            assert {key: held(found, key) for key in found.pieces} == {key: held(listed, key) for key in listed.pieces}
    # Every even cut is Meta's, and no other.
    assert read == [mp for mp in MPS if mp in mini.even_mp]


def test_a_vocabulary_cut_unevenly_is_told_without_shards_json_even_where_nobody_says_its_size(tmp_path: Path) -> None:
    # 128 entries on 3 ranks are 48, 48 and 32; everything else goes evenly.
    mini = Mini(dim=96, n_heads=12, n_kv_heads=12, multiple_of=48, vocabulary=128, even_mp=(1,))
    write_meta_folder(open_checkpoint(mini.write(tmp_path / "source", 1)), tmp_path / "ckpt", 3)
    (tmp_path / "ckpt" / "shards.json").unlink()
    edit_params(tmp_path / "ckpt", vocab_size=-1)
    # As if of three equal shares of 48; the embedding, cut along its width, knows better.
    sentence = r"00\.pth: tok_embeddings\.weight has shape \[128, 32\]; params\.json and 3 shards give \[144, 32\]"
    with pytest.raises(RefusedError, match=sentence):
        open_checkpoint(tmp_path / "ckpt")


@pytest.mark.parametrize(("spoilt", "refused"), [(1, True), (3, False)], ids=["in one weight", "in most"])
def test_copies_of_a_kv_head_that_differ_in_few_weights_are_a_fault_and_in_most_are_other_heads(
    spoilt: int, refused: bool, tmp_path: Path
) -> None:
    folder = MINIS["16 heads, 8 KV heads"].write(tmp_path / "ckpt", 16)
    names = [f"layers.{layer}.attention.{part}.weight" for layer in (0, 1) for part in ("wk", "wv")][:spoilt]

    def change(shard: dict[str, Tensor]) -> None:
        for name in names:
            shard[name][0, 0] += 1

    edit_shard(folder / SHARD.format(3), change)
    sentence = (
        f"{folder}: the shards hold each KV head 2 times, but the copies of {WK} differ (1 of 4 such weights); "
        "a shard is damaged or of another model: get them again"
    )
    found = opened(folder)
    assert found == sentence if refused else isinstance(found, Checkpoint) and found.params.n_kv_heads == 16


def test_more_shards_than_kv_heads_are_read_though_params_json_counts_each_head_once(tmp_path: Path) -> None:
    folder = MINIS["16 heads, 8 KV heads"].write(tmp_path / "ckpt", 16)
    edit_params(folder, n_kv_heads=8)
    checkpoint = open_checkpoint(folder)
    assert checkpoint.params.n_kv_heads == 8
    # Each head, of 4 numbers, on two neighbours.
    assert held(checkpoint, WK) == [(rank // 2 * 4, rank // 2 * 4 + 4) for rank in range(16)]


@pytest.mark.parametrize("stored", [-1, 144])
def test_the_vocabulary_is_that_of_the_output_layer(stored: int, tmp_path: Path) -> None:
    folder = MINIS["12 heads, 4 KV heads"].write(tmp_path / "ckpt", 4)
    edit_params(folder, vocab_size=stored)
    assert open_checkpoint(folder).params.vocab_size == 144
    write_meta_folder(open_checkpoint(folder), tmp_path / "uneven", 5)
    assert open_checkpoint(tmp_path / "uneven").params.vocab_size == 144


@pytest.mark.parametrize(("mp", "rows"), [(4, 36), (5, 32)])
def test_another_vocabulary_in_params_json_is_refused_with_the_rows(mp: int, rows: int, tmp_path: Path) -> None:
    write_meta_folder(
        open_checkpoint(MINIS["12 heads, 4 KV heads"].write(tmp_path / "source", 2)), tmp_path / "ckpt", mp
    )
    edit_params(tmp_path / "ckpt", vocab_size=145)
    sentence = (
        rf"params\.json: vocab_size is 145, but output\.weight of consolidated\.00\.pth has {rows} rows \(144 over "
        rf"{mp} shards\); correct it, or write -1$"
    )
    with pytest.raises(RefusedError, match=sentence):
        open_checkpoint(tmp_path / "ckpt")


@pytest.mark.parametrize("embedding_dim", [0, 1])
def test_the_embedding_of_a_single_file_is_cut_as_asked(embedding_dim: int, tmp_path: Path) -> None:
    mini = MINIS["12 heads, 4 KV heads"]
    checkpoint = open_checkpoint(mini.write(tmp_path / "ckpt", 1)).with_embedding_dim(embedding_dim)
    assert checkpoint.embedding_dim == embedding_dim
    assert checkpoint.weights[0].cut == embedding_dim
    assert held(checkpoint, "tok_embeddings.weight") == [(0, (144, 96)[embedding_dim])]


@pytest.mark.parametrize("embedding_dim", [0, 1])
def test_a_single_file_of_ours_is_read_however_its_embedding_was_cut(embedding_dim: int, tmp_path: Path) -> None:
    name = "12 heads, 4 KV heads" if embedding_dim == 0 else "12 heads"
    source = open_checkpoint(MINIS[name].write(tmp_path / "source", 2))
    assert source.embedding_dim == embedding_dim
    write_meta_folder(source, tmp_path / "one", 1)
    checkpoint = open_checkpoint(tmp_path / "one")
    assert checkpoint.mp == 1
    # It remembers, so that there and back is the same cut.
    assert checkpoint.embedding_dim == embedding_dim


# A folder of ours, cut unevenly, and another model's.


@pytest.fixture
def uneven(tmp_path: Path) -> Path:
    write_meta_folder(open_checkpoint(MINIS["12 heads"].write(tmp_path / "source", 2)), tmp_path / "ckpt", 5)
    return tmp_path / "ckpt"


@pytest.fixture
def other(tmp_path: Path) -> Path:
    """The same shapes, other numbers."""
    source = MINIS["12 heads"].write(tmp_path / "other-source", 2, seed=8)
    write_meta_folder(open_checkpoint(source), tmp_path / "other", 5)
    return tmp_path / "other"


def test_swapped_shards_are_refused_by_their_names(uneven: Path) -> None:
    first, second = uneven / SHARD.format(0), uneven / SHARD.format(1)
    first.rename(uneven / "aside")
    second.rename(first)
    (uneven / "aside").rename(second)
    sentence = r"00\.pth: holds what shards\.json lists for consolidated\.01\.pth; the shards are swapped: rename them$"
    with pytest.raises(RefusedError, match=sentence):
        open_checkpoint(uneven)


def test_shards_json_of_another_checkpoint_is_refused_by_the_first_key_that_differs(uneven: Path, other: Path) -> None:
    shutil.copyfile(other / "shards.json", uneven / "shards.json")
    sentence = (
        r"consolidated\.00\.pth: tok_embeddings\.weight is not what shards\.json lists \(CRC-32 \d+, listed \d+\); get "
        r"the file again, or delete shards\.json if it was replaced on purpose$"
    )
    with pytest.raises(RefusedError, match=sentence):
        open_checkpoint(uneven)


def test_a_shard_of_another_checkpoint_is_refused(uneven: Path, other: Path) -> None:
    shutil.copyfile(other / SHARD.format(3), uneven / SHARD.format(3))
    with pytest.raises(RefusedError, match=r"consolidated\.03\.pth: tok_embeddings\.weight is not what shards\.json"):
        open_checkpoint(uneven)


def test_a_missing_last_shard_is_refused_with_both_lists(uneven: Path) -> None:
    (uneven / SHARD.format(4)).unlink()
    sentence = r"shards\.json: lists consolidated\.00\.pth, .*consolidated\.04\.pth but the folder holds .*03\.pth; get"
    with pytest.raises(RefusedError, match=sentence):
        open_checkpoint(uneven)


def test_params_json_of_another_number_of_kv_heads_is_refused(uneven: Path) -> None:
    edit_params(uneven, n_kv_heads=6)
    sentence = (
        r"shards\.json: lists 12 KV heads, but n_kv_heads in params\.json is 6; the two files are of different "
        "checkpoints$"
    )
    with pytest.raises(RefusedError, match=sentence):
        open_checkpoint(uneven)


# Against the number of ranks.


def test_as_many_ranks_as_shards_need_no_note(uneven: Path) -> None:
    for strict in (False, True):
        assert open_checkpoint(uneven).check_mp(5, strict) is None


def test_another_number_of_ranks_is_a_note_that_says_how_to_cut_once_for_all(uneven: Path) -> None:
    once = f"shardrun reshard {uneven} {uneven.resolve().parent / 'ckpt-mp3'} --mp 3"
    expected = f"{uneven}: holds 5 shards (MP 5); 3 ranks cut it anew while loading (once for all: {once})"
    assert (open_checkpoint(uneven).check_mp(3) or "").startswith(expected)
    assert "; 1 rank cut" in (open_checkpoint(uneven).check_mp(1) or "")


def test_a_note_says_where_a_cut_is_uneven(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(MINIS["12 heads"].write(tmp_path / "ckpt", 1))
    assert checkpoint.check_mp(1) is None
    notes = {ranks: checkpoint.check_mp(ranks) or "" for ranks in range(2, 13)}
    assert all("1 shard (MP 1)" in note and f"--mp {ranks})" in note for ranks, note in notes.items())
    # The vocabulary of 128 and the feed-forward's 256 go evenly over powers of two, 12 heads over 2 and 4 of them.
    uneven = [
        ranks
        for ranks, note in notes.items()
        if note.endswith("the cut is uneven, and the fullest rank sets the speed")
    ]
    assert uneven == [3, 5, 6, 7, 8, 9, 10, 11, 12]


@pytest.mark.parametrize(
    ("mp", "ranks", "shards", "were"),
    [(5, 3, "5 shards", "3 ranks were"), (1, 2, "1 shard", "2 ranks were"), (5, 1, "5 shards", "1 rank was")],
)
def test_another_number_of_ranks_is_refused_with_strict_mp(
    mp: int, ranks: int, shards: str, were: str, tmp_path: Path
) -> None:
    folder = tmp_path / "ckpt"
    write_meta_folder(open_checkpoint(MINIS["12 heads"].write(tmp_path / "source", 2)), folder, mp)
    with pytest.raises(RefusedError) as refused:
        open_checkpoint(folder).check_mp(ranks, strict=True)
    assert str(refused.value) == (
        f"{folder}: holds {shards} (MP {mp}) but {were} started (world size {ranks}); start {mp}: --nproc_per_node "
        f"{mp} (torchrun: --nproc-per-node {mp}), or cut it anew: shardrun reshard {folder} "
        f"{folder.resolve().parent}/ckpt-mp{ranks} --mp {ranks}, or drop --strict_mp"
    )


@pytest.mark.parametrize("strict", [False, True])
def test_more_ranks_than_heads_are_refused_with_the_most_there_can_be(strict: bool, uneven: Path) -> None:
    with pytest.raises(RefusedError, match=r"ckpt: cannot cut 12 heads over 13 ranks; choose an MP of 12 or fewer$"):
        open_checkpoint(uneven).check_mp(13, strict)


# What ranks compare.


def test_the_fingerprint_tells_other_weights_and_other_sizes(uneven: Path, other: Path) -> None:
    mine = open_checkpoint(uneven).fingerprint()
    assert open_checkpoint(uneven).fingerprint() == mine
    theirs = open_checkpoint(other).fingerprint()
    assert theirs["params.json"] == mine["params.json"]
    assert theirs["the checkpoint's tensors"] != mine["the checkpoint's tensors"]
    edit_params(uneven, norm_eps=1e-6)
    assert open_checkpoint(uneven).fingerprint()["params.json"] != mine["params.json"]


def test_a_slice_is_given_by_as_few_files_as_hold_it(uneven: Path) -> None:
    checkpoint = open_checkpoint(uneven)
    wq = next(weight for weight in checkpoint.weights if weight.name == WQ)
    # 12 heads of 8 numbers on 5 ranks: 3, 3, 2, 2, 2.
    parts = [(piece.header.path.name, part) for piece, part in checkpoint.sources(wq, Slice(20, 50))]
    assert parts == [
        (SHARD.format(0), Slice(20, 24)),
        (SHARD.format(1), Slice(24, 48)),
        (SHARD.format(2), Slice(48, 50)),
    ]


def test_what_every_file_holds_is_taken_from_the_preferred_one(uneven: Path) -> None:
    checkpoint = open_checkpoint(uneven)
    norm = next(weight for weight in checkpoint.weights if weight.name == "norm.weight")
    for prefer in range(5):
        ((piece, part),) = checkpoint.sources(norm, Slice(0, 96), prefer)
        assert (piece.header.path.name, part) == (SHARD.format(prefer), Slice(0, 96))


def test_a_legacy_file_is_opened_only_where_it_is_allowed(tmp_path: Path) -> None:
    folder = MINIS["12 heads"].write(tmp_path / "ckpt", 1)

    def save_legacy(shard: dict[str, Tensor]) -> None:
        torch.save(shard, folder / "legacy", _use_new_zipfile_serialization=False)

    edit_shard(folder / SHARD.format(0), save_legacy)
    (folder / "legacy").replace(folder / SHARD.format(0))
    with pytest.raises(RefusedError, match=r"is a legacy PyTorch file .* --allow_legacy loads its tensors"):
        open_meta_folder(folder)
    assert open_meta_folder(folder, allow_legacy=True).files[0].kind == "legacy"
