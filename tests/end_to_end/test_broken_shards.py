"""Faults of a checkpoint folder and its shards (FAULTS A1 to A32), through the real command."""

import io
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from model.checkpoint.opening import open_checkpoint
from model.checkpoint.reading import open_weights
from parallel import RefusedError
from tests.checkpoints import (
    SHARD,
    WIDE,
    Sizes,
    cut_short,
    edit_shard,
    flip_bit,
    plant_payload_in_legacy,
    plant_payload_in_zip,
    rewrite_zip,
    whole_weights,
    write_checkpoint,
    write_shards,
    zip_bomb,
)
from tests.end_to_end.command import (
    WHILE_LOADING_S,
    CopyOf,
    Running,
    assert_done,
    assert_refused,
    complete,
    run,
    snapshot,
)
from tests.end_to_end.faults import Fault, Table

FIRST, SECOND = SHARD.format(0), SHARD.format(1)
WQ = "layers.0.attention.wq.weight"
UNSAFE = {"TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD": "1"}
TABLE = Table()
add = TABLE.add


# The folder and the names in it.


@add("A1_folder_missing", "ckpt:", "does not exist", "--ckpt_dir")
def remove_folder(folder: Path) -> None:
    shutil.rmtree(folder)


@add("A1_folder_is_a_file", "ckpt:", "is a file", "folder")
def replace_by_file(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.write_text("not a folder")


@add("A2_folder_empty", "ckpt:", "is empty", "params.json", "consolidated.00.pth")
def empty_folder(folder: Path) -> None:
    for path in folder.iterdir():
        path.unlink()


@add("A2_nothing_that_is_wanted", "ckpt:", "consolidated.00.pth", "params.json", "notes.md", "weights.bin")
def keep_only_foreign_files(folder: Path) -> None:
    empty_folder(folder)
    (folder / "notes.md").write_text("some notes")
    (folder / "weights.bin").write_bytes(b"\0" * 64)


STRICT = ("--strict_mp",)


@add(
    "A3_two_shards_one_rank",
    *("ckpt:", "2 shards", "1 rank", "--nproc_per_node 2", "--nproc-per-node 2", "shardrun reshard", "--mp 1"),
    mp=2,
    ranks=1,
    flags=STRICT,
)
@add(
    "A3_one_shard_two_ranks",
    *("ckpt:", "1 shard", "2 ranks", "--nproc_per_node 1", "reshard", "--mp 2"),
    mp=1,
    ranks=2,
    flags=STRICT,
)
@add("A3_more_ranks_than_heads", "cannot cut 4 heads over 5 ranks", "MP of 4 or fewer", mp=2, ranks=5)
def change_nothing(_folder: Path) -> None:
    pass


@add("A3_four_shards_two_ranks", "4 shards", "2 ranks", "--nproc_per_node 4", "reshard", "--mp 2", mp=2, flags=STRICT)
def cut_for_four(folder: Path) -> None:
    shutil.copyfile(folder / "tokenizer.model", folder.parent / "tokenizer.model")
    shutil.rmtree(folder)
    write_checkpoint(folder, 4, Sizes(n_kv_heads=4))


@add("A4_gap", "ckpt:", "consolidated.01.pth", "missing", "consolidated.02.pth", mp=2)
def leave_a_gap(folder: Path) -> None:
    (folder / SECOND).rename(folder / SHARD.format(2))


# A file that is not what its name says.


@add("A7_cut_to_1_percent", FIRST, "cut short", "{size} bytes", "download it again")
def cut_to_1_percent(folder: Path) -> None:
    _wide(folder)
    cut_short(folder / FIRST, 0.01)


@add("A7_cut_to_50_percent", FIRST, "cut short", "{size} bytes found", "expected", "download it again")
def cut_to_half(folder: Path) -> None:
    _wide(folder)
    cut_short(folder / FIRST, 0.5)


@add("A7_cut_to_99.5_percent", FIRST, "cut short", "{size} bytes found", "expected", "download it again")
def cut_to_nearly_all(folder: Path) -> None:
    _wide(folder)
    cut_short(folder / FIRST, 0.995)


def _wide(folder: Path) -> None:
    """Weights so large that the zip's own bytes are less than half a percent of the file."""
    (folder / FIRST).unlink()
    write_shards(folder, 1, WIDE)


@add("A8_zero_bytes", SECOND, "is empty", "download it again", mp=2)
def empty_file(folder: Path) -> None:
    (folder / SECOND).write_bytes(b"")


@add("A9_web_page", FIRST, "is a web page", "<html", "download it again")
def web_page(folder: Path) -> None:
    (folder / FIRST).write_text("<html><head><title>403 Forbidden</title></head></html>")


@add("A9_plain_text", FIRST, "is not a PyTorch zip", "Access denied", "download it again")
def plain_text(folder: Path) -> None:
    (folder / FIRST).write_text("Access denied. Request a new link.")


@add("A10_git_lfs_pointer", FIRST, "Git LFS pointer", "git lfs pull")
def lfs_pointer(folder: Path) -> None:
    text = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a214614ab2935c943f9e0ff69d22e\nsize 13476925163\n"
    (folder / FIRST).write_text(text)


@add("A11_legacy_file", FIRST, "legacy", "--allow_legacy")
def save_legacy(folder: Path) -> None:
    state = torch.load(folder / FIRST, weights_only=True)
    torch.save(state, folder / FIRST, _use_new_zipfile_serialization=False)


@add("A12_malicious_zip", FIRST, "system", "executed", "trust")
@add("A12_malicious_zip_with_torchs_safety_off", FIRST, "system", "executed", "trust", env=UNSAFE)
def malicious_zip(folder: Path) -> None:
    plant_payload_in_zip(folder / FIRST, folder.parent / "marker")


@add("A13_malicious_legacy_file", FIRST, "legacy", env=UNSAFE)
@add(
    "A13_malicious_legacy_file_that_is_allowed",
    *(FIRST, "system", "executed", "trust"),
    flags=("--allow_legacy",),
    env=UNSAFE,
    limit_s=WHILE_LOADING_S,
)
def malicious_legacy(folder: Path) -> None:
    plant_payload_in_legacy(folder / FIRST, folder.parent / "marker")


# What a shard holds.


@add(
    "A14_bit_flip",
    *(FIRST, "layers.0.attention.wq.weight", "data/1", "CRC-32", "get the file again"),
    limit_s=WHILE_LOADING_S,
)
def flip_a_bit(folder: Path) -> None:
    flip_bit(folder / FIRST, 1)


@add(
    "A14_bit_flip_in_one_of_two_shards",
    *(SECOND, "rank 1", "layers.0.attention.wq.weight", "data/1", "CRC-32", "get the file again"),
    mp=2,
    limit_s=WHILE_LOADING_S,
)
@add(
    "A14_bit_flip_in_one_of_two_shards_that_one_process_reads",
    *(SECOND, "layers.0.attention.wq.weight", "data/1", "CRC-32", "get the file again"),
    mp=2,
    ranks=1,
    limit_s=WHILE_LOADING_S,
)
@add(
    "A14_bit_flip_in_one_of_two_shards_that_three_ranks_read",
    *(SECOND, "layers.0.attention.wq.weight", "data/1", "CRC-32", "get the file again"),
    mp=2,
    ranks=3,
    limit_s=WHILE_LOADING_S,
)
def flip_a_bit_of_the_second(folder: Path) -> None:
    flip_bit(folder / SECOND, 1)


@add("A15_keys_missing_everywhere", FIRST, WQ, "2 more missing", "get the file again", mp=2)
def drop_keys_everywhere(folder: Path) -> None:
    dropped = {f"layers.0.attention.{part}.weight" for part in ("wq", "wk", "wv")}
    for name in (FIRST, SECOND):
        edit_shard(folder / name, lambda shard: {key: value for key, value in shard.items() if key not in dropped})


@add("A16_key_missing_on_one_rank", SECOND, WQ, "missing", "rank 1", "get the file again", mp=2)
def drop_key_on_one_rank(folder: Path) -> None:
    edit_shard(folder / SECOND, lambda shard: {key: value for key, value in shard.items() if key != WQ})


@add("A17_extra_key", FIRST, "vision.encoder.weight", "another model")
def extra_key(folder: Path) -> None:
    edit_shard(folder / FIRST, lambda shard: shard.update({"vision.encoder.weight": torch.zeros(3)}))


@add("A18_wrong_shape_in_one_shard", SECOND, "layers.1.feed_forward.w1.weight", "[47, 32]", "[48, 32]", mp=2)
def wrong_shape(folder: Path) -> None:
    key = "layers.1.feed_forward.w1.weight"
    edit_shard(folder / SECOND, lambda shard: shard.update({key: shard[key][:-1].clone()}))


@add("A19_float64", FIRST, WQ, "float64", "float32")
def float64(folder: Path) -> None:
    edit_shard(folder / FIRST, lambda shard: shard.update({WQ: shard[WQ].double()}))


@add("A20_int8", FIRST, WQ, "int8", "float32")
def int8(folder: Path) -> None:
    edit_shard(folder / FIRST, lambda shard: shard.update({WQ: shard[WQ].to(torch.int8)}))


@add("A21_nan_tensor", FIRST, WQ, "1024", "not finite", "nan", "[0, 0]", limit_s=WHILE_LOADING_S)
def nan_tensor(folder: Path) -> None:
    edit_shard(folder / FIRST, lambda shard: shard.update({WQ: torch.full((32, 32), float("nan"))}))


@add("A22_one_infinity", FIRST, WQ, "1 number", "not finite", "inf", "[3, 5]", limit_s=WHILE_LOADING_S)
def one_infinity(folder: Path) -> None:
    def spoil(shard: dict[str, torch.Tensor]) -> None:
        shard[WQ][3, 5] = float("inf")

    edit_shard(folder / FIRST, spoil)


@add("A23_shard_copied_over_another", FIRST, SECOND, "identical", "CRC-32", "again", mp=2)
def copy_over(folder: Path) -> None:
    shutil.copyfile(folder / FIRST, folder / SECOND)


@add("A25_shard_of_another_model", SECOND, "layers.0.attention_norm.weight", "differs", "different models", mp=2)
def shard_of_another_model(folder: Path) -> None:
    other = write_checkpoint(folder.parent / "other", 2, seed=8)
    shutil.move(other / SECOND, folder / SECOND)
    shutil.rmtree(other)


@add("A26_a_list", FIRST, "list", "dictionary")
def a_list(folder: Path) -> None:
    edit_shard(folder / FIRST, lambda shard: list(shard.values()))


@add("A26_a_tensor", FIRST, "tensor", "dictionary")
def a_tensor(folder: Path) -> None:
    edit_shard(folder / FIRST, lambda shard: shard[WQ])


@add("A26_numbers_for_tensors", FIRST, "steps", "int", "not a tensor")
def a_number_among_tensors(folder: Path) -> None:
    edit_shard(folder / FIRST, lambda shard: shard.update({"steps": 3}))


# What kind of file it is.


@add("A28_shard_is_a_folder", SECOND, "is a folder", mp=2)
def shard_is_a_folder(folder: Path) -> None:
    (folder / SECOND).unlink()
    (folder / SECOND).mkdir()


@add("A28_dangling_link", SECOND, "link to gone.pth", "does not exist", mp=2)
def dangling_link(folder: Path) -> None:
    (folder / SECOND).unlink()
    (folder / SECOND).symlink_to("gone.pth")


@add("A29_fifo", FIRST, "not a regular file")
def fifo(folder: Path) -> None:
    (folder / FIRST).unlink()
    os.mkfifo(folder / FIRST)


@add("A29_list_of_checksums_is_a_fifo", "shards.json", "not a regular file", mp=2)
def list_is_a_fifo(folder: Path) -> None:
    os.mkfifo(folder / "shards.json")


@add("A29_link_to_itself", FIRST, "cannot be read", "symbolic links")
def link_to_itself(folder: Path) -> None:
    (folder / FIRST).unlink()
    (folder / FIRST).symlink_to(FIRST)


@add("A30_compressed_record", FIRST, "data/0", "compressed")
def compressed_record(folder: Path) -> None:
    rewrite_zip(folder / FIRST, {"data/0": bytes(38400)}, compression=8)


@add("A31_stride_0", FIRST, WQ, "strides [0, 0]", "contiguous")
def stride_0(folder: Path) -> None:
    edit_shard(folder / FIRST, lambda shard: shard.update({WQ: torch.zeros(1, 1).expand(32, 32)}))


@add("A31_transposed", FIRST, WQ, "strides [1, 32]", "contiguous")
def transposed(folder: Path) -> None:
    edit_shard(folder / FIRST, lambda shard: shard.update({WQ: shard[WQ].t()}))


@add("A31_sparse", FIRST, WQ, "sparse", "plain tensor")
def sparse(folder: Path) -> None:
    edit_shard(folder / FIRST, lambda shard: shard.update({WQ: torch.eye(32).to_sparse()}))


@add("A31_meta", FIRST, WQ, "meta", "plain tensor")
def meta(folder: Path) -> None:
    edit_shard(folder / FIRST, lambda shard: shard.update({WQ: torch.empty(32, 32, device="meta")}))


@pytest.mark.parametrize("fault", TABLE.each())
def test_a_broken_folder_is_refused_with_one_message_and_left_as_it_is(
    fault: Fault, copy_of: CopyOf, case: Path
) -> None:
    folder = copy_of(fault.mp)
    fault.break_it(folder)
    before = snapshot(case)
    outcome = run(complete("ckpt", *fault.all_flags), case, env=fault.env)
    size = (folder / FIRST).stat().st_size if (folder / FIRST).is_file() else 0
    says = [said.replace("{size}", str(size)) if isinstance(said, str) else said for said in fault.says]
    # Nothing written: no marker of a payload either.
    assert snapshot(case) == before
    assert_refused(outcome, says, fault.limit_s)


def test_A12_a_payload_does_run_where_it_is_unpickled(copy_of: CopyOf, case: Path) -> None:
    folder = copy_of(1)
    malicious_zip(folder)
    torch.load(folder / FIRST, weights_only=False)
    assert (case / "marker").exists()
    (case / "marker").unlink()
    malicious_legacy(folder)
    torch.load(folder / FIRST, weights_only=False)
    assert (case / "marker").exists()


# Oddities that are no faults: read, with a note.


def test_A5_a_foreign_pth_file_is_passed_over_with_a_note(copy_of: CopyOf, case: Path) -> None:
    torch.save({"step": 3}, copy_of(1) / "optimizer.pth")
    before = snapshot(case)
    assert_done(run(complete(), case), ["optimizer.pth ignored"])
    assert snapshot(case) == before


def test_A6_twelve_unpadded_shards_are_read_in_the_order_of_their_numbers(case: Path) -> None:
    sizes = Sizes(dim=48, n_heads=12, n_kv_heads=12, multiple_of=24)
    write_checkpoint(case / "ckpt", 12, sizes, padded=False)
    files = open_checkpoint(case / "ckpt").files
    assert [header.path.name for header in files] == [f"consolidated.{rank}.pth" for rank in range(12)]
    assert_done(run(["reshard", "ckpt", "whole", "--mp", "1"], case))
    merged = torch.load(case / "whole" / FIRST, weights_only=True)
    whole = whole_weights(sizes)
    assert set(merged) == set(whole)
    assert all(torch.equal(merged[name], weight) for name, weight in whole.items())


def test_A11_a_legacy_file_is_read_where_it_is_allowed(copy_of: CopyOf, case: Path, healthy_answer: str) -> None:
    save_legacy(copy_of(1))
    allowed = run(complete("ckpt", "--json", "--allow_legacy"), case)
    assert_done(allowed)
    assert allowed.out == healthy_answer


def test_A24_swapped_shards_are_told_by_the_list_of_checksums(copy_of: CopyOf, case: Path) -> None:
    copy_of(1)
    assert_done(run(["reshard", "ckpt", "two", "--mp", "2"], case))
    (case / "two" / FIRST).rename(case / "two" / "was-first")
    (case / "two" / SECOND).rename(case / "two" / FIRST)
    (case / "two" / "was-first").rename(case / "two" / SECOND)
    outcome = run(complete("two", "--nproc_per_node", "2"), case)
    assert_refused(outcome, [FIRST, SECOND, "shards.json", "swapped"])


def test_A24_two_shards_without_a_list_are_read_with_a_warning(copy_of: CopyOf, case: Path) -> None:
    copy_of(2)
    before = snapshot(case)
    outcome = run(complete("ckpt", "--json", "--nproc_per_node", "2"), case)
    assert_done(outcome, ["shards.json", "swapped shards could not be told"])
    assert outcome.out.count("\n") == 1
    assert snapshot(case) == before


def test_A27_weights_nested_under_model_are_read_as_what_they_are(
    copy_of: CopyOf, case: Path, healthy_answer: str
) -> None:
    edit_shard(copy_of(1) / FIRST, lambda shard: {"model": shard})
    nested = run(complete("ckpt", "--json"), case)
    assert_done(nested, ["nested under 'model'"])
    assert nested.out == healthy_answer


def test_A29_an_unreadable_file_is_named_with_the_systems_reason(copy_of: CopyOf, case: Path) -> None:
    folder = copy_of(1)
    (folder / FIRST).chmod(0)
    wrapper: tuple[str, ...] = ()
    if os.getuid() == 0:
        # Root reads everything; without these capabilities it is held to the file's mode.
        if shutil.which("setpriv") is None:
            pytest.skip("runs as root, and setpriv is not there to drop what lets root read everything")
        wrapper = ("setpriv", "--bounding-set", "-dac_override,-dac_read_search", "--inh-caps", "-all")
    with Running(complete(), case, wrapper=wrapper) as running:
        assert_refused(running.end(), [FIRST, "cannot be read", "Permission denied"])


def test_A29_a_link_to_a_file_elsewhere_is_followed_as_download_caches_need(copy_of: CopyOf, case: Path) -> None:
    folder = copy_of(1)
    (folder / FIRST).rename(case / "blob")
    (folder / FIRST).symlink_to(case / "blob")
    assert_done(run(complete(), case))


def test_A30_a_zip_bomb_is_refused_before_it_is_inflated(copy_of: CopyOf, case: Path) -> None:
    folder = copy_of(1)
    zip_bomb(folder / FIRST, 0, 512 * 2**20)
    assert (folder / FIRST).stat().st_size < 4 * 2**20
    outcome = run(complete(), case)
    assert_refused(outcome, [FIRST, "data/0", "compressed"])
    # What this process holds counts for its child too, up to the moment of exec.
    assert outcome.peak_bytes < 500 * 2**20


Change = Callable[[Path], None]


# A32: a file that changes while it is read, in this process since the moment matters.


def _append(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"more")


def _overwrite(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(path.stat().st_size // 2)
        file.write(b"other bytes")


def _replace(path: Path) -> None:
    new = io.BytesIO()
    torch.save(whole_weights(seed=9), new)
    path.with_suffix(".new").write_bytes(new.getvalue())
    path.with_suffix(".new").replace(path)


@pytest.mark.parametrize("change", [_append, _overwrite, _replace])
def test_A32_a_file_that_changes_while_it_is_read_is_refused(change: Change, copy_of: CopyOf) -> None:
    checkpoint = open_checkpoint(copy_of(1))
    weight = next(weight for weight in checkpoint.weights if weight.name == WQ)

    def read_and_change() -> None:
        with open_weights(checkpoint) as reader:
            reader.read(weight, weight.slices(checkpoint.split(1))[0])
            change(checkpoint.files[0].path)

    with pytest.raises(RefusedError, match=rf"{FIRST}: was changed while it was being read"):
        read_and_change()


@pytest.mark.parametrize("change", [_append, _overwrite, _replace])
def test_A32_a_file_that_changes_between_header_and_weights_is_refused(change: Change, copy_of: CopyOf) -> None:
    checkpoint = open_checkpoint(copy_of(1))
    change(checkpoint.files[0].path)
    with pytest.raises(RefusedError, match=rf"{FIRST}: was changed"), open_weights(checkpoint):
        pass
