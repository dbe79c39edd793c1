"""Reading every number: all faults, and digests that are computed here with torch.load and hashlib."""

import hashlib
import json
import re
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from model.checkpoint.opening import open_checkpoint
from model.checkpoint.reshard import write_meta_folder
from model.inspection.deep_reading import read_deeply
from model.inspection.report import ChecklistEntry, DeepReport
from parallel.errors import RefusedError
from tests.checkpoints import edit_shard, flip_bit
from tests.gguf_files import save_gguf
from tests.hugging_face import meta_weights, save_llama, stored_tensors
from tests.reference import merged_weights
from tests.unit.model.conftest import MakeFolder


def deep(folder: Path, allow_legacy: bool = False) -> DeepReport:
    return read_deeply(open_checkpoint(folder, allow_legacy))


def faults_of(folder: Path, allow_legacy: bool = False) -> list[str]:
    """The lines of the refusal, without the first where there are several."""
    with pytest.raises(RefusedError) as refused:
        deep(folder, allow_legacy)
    lines = str(refused.value).splitlines()
    if len(lines) == 1:
        return lines
    assert lines[0] == f"{len(lines) - 1} faults"
    return lines[1:]


def content_digest(weights: dict[str, Tensor]) -> str:
    """What the digest of a model is, of its uncut weights in Meta's order."""
    lines = ""
    for name, tensor in weights.items():
        content = hashlib.sha256(bytes(tensor.contiguous().flatten().view(torch.uint8).tolist())).hexdigest()
        lines += f"{name} {str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)} {content}\n"
    return hashlib.sha256(lines.encode()).hexdigest()


def spoil(folder: Path, rank: int, name: str, place: tuple[int, ...], value: float) -> None:
    def change(state: dict[str, Tensor]) -> None:
        state[name][place] = value

    edit_shard(folder / f"consolidated.{rank:02d}.pth", change)


@pytest.mark.parametrize(("embedding_dim", "mp"), [(1, 1), (0, 2), (1, 2), (1, 4)])
def test_the_digests_are_those_of_the_files_and_of_the_uncut_weights(
    make_folder: MakeFolder, embedding_dim: int, mp: int
) -> None:
    folder = make_folder("ckpt", mp=mp, embedding_dim=embedding_dim)
    report = deep(folder)
    assert report.content_sha256 == content_digest(merged_weights(folder))
    paths = sorted(folder.glob("*.pth"))
    assert report.sha256 == {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}
    assert report.checksums
    assert not report.tied
    assert report.checklist is None
    assert report.read_bytes == sum(4 * w.numel() for path in paths for w in torch.load(path).values())


@pytest.mark.parametrize("mp", [2, 3, 4])
def test_the_content_is_the_same_however_it_is_cut(make_folder: MakeFolder, tmp_path: Path, mp: int) -> None:
    source = make_folder("source", n_kv_heads=2)
    write_meta_folder(open_checkpoint(source), tmp_path / "cut", mp)
    one, other = deep(source), deep(tmp_path / "cut")
    assert other.content_sha256 == one.content_sha256
    assert not set(other.sha256.values()) & set(one.sha256.values())


def test_one_other_number_or_dtype_is_another_content(make_folder: MakeFolder) -> None:
    folder = make_folder("ckpt", mp=2)
    found = {deep(folder).content_sha256}
    spoil(folder, 1, "layers.1.feed_forward.w2.weight", (3, 4), 0.5)
    found.add(deep(folder).content_sha256)
    for rank in range(2):
        edit_shard(
            folder / f"consolidated.{rank:02d}.pth",
            lambda state: {name: tensor.to(torch.bfloat16) for name, tensor in state.items()},
        )
    found.add(deep(folder).content_sha256)
    assert len(found) == 3


@pytest.mark.parametrize("tied", [False, True])
def test_the_content_is_the_same_in_hugging_faces_layout(tmp_path: Path, tied: bool) -> None:
    save_llama(tmp_path / "hf", torch.bfloat16, "20kB", tie_word_embeddings=tied, num_key_value_heads=2)
    assert len(list((tmp_path / "hf").glob("*.safetensors"))) > 1
    weights = meta_weights(stored_tensors(tmp_path / "hf"), 4, 2)
    if tied:
        weights["output.weight"] = weights["tok_embeddings.weight"]
    report = deep(tmp_path / "hf")
    in_order = [weight.name for weight in open_checkpoint(tmp_path / "hf").weights]
    assert report.content_sha256 == content_digest({name: weights[name] for name in in_order})
    assert report.sha256 == {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in (tmp_path / "hf").glob("*.safetensors")
    }
    assert report.tied == tied
    assert not report.checksums


def test_a_gguf_file_has_the_content_of_what_it_was_made_of_and_its_faults_are_listed(tmp_path: Path) -> None:
    llama = save_llama(tmp_path / "hf", num_key_value_heads=2)
    assert deep(save_gguf(tmp_path / "a.gguf", llama)).content_sha256 == deep(tmp_path / "hf").content_sha256
    spoilt = {name: np.ones(32, np.float32) for name in ("blk.1.attn_norm.weight", "output_norm.weight")}
    for numbers in spoilt.values():
        numbers[3] = np.nan
    found = faults_of(save_gguf(tmp_path / "b.gguf", llama, tensors=spoilt))
    assert [fault.split(": ")[1].split()[0] for fault in found] == list(spoilt)
    assert all("nan at [3]" in fault for fault in found)


def test_an_output_that_is_the_embedding_is_told_though_the_two_are_cut_differently(make_folder: MakeFolder) -> None:
    folder = make_folder("ckpt", mp=2, embedding_dim=1)
    rows = merged_weights(folder)["tok_embeddings.weight"].chunk(2, 0)
    for rank in range(2):
        edit_shard(
            folder / f"consolidated.{rank:02d}.pth",
            lambda state, own=rows[rank]: state | {"output.weight": own.clone()},  # type: ignore[misc]
        )
    assert deep(folder).tied


def test_every_fault_is_listed_with_file_tensor_count_and_first_place(make_folder: MakeFolder) -> None:
    folder = make_folder("ckpt", mp=2, embedding_dim=0)
    spoil(folder, 0, "layers.0.attention.wo.weight", (2, 3), float("nan"))
    spoil(folder, 0, "layers.0.attention.wo.weight", (7, 1), float("inf"))
    spoil(folder, 1, "output.weight", (5, 0), -float("inf"))
    spoil(folder, 1, "tok_embeddings.weight", (0, 9), float("nan"))
    # The fourth tensor of the file.
    flip_bit(folder / "consolidated.01.pth", 3)
    found = faults_of(folder)
    assert len(found) == 4
    first, second = folder / "consolidated.00.pth", folder / "consolidated.01.pth"
    assert found[0].startswith(f"{second}: tok_embeddings.weight holds 1 number that is not finite, the first nan")
    assert "[0, 9]" in found[0]
    assert found[1].startswith(f"{second}: layers.0.attention.wv.weight is damaged: record data/3 has CRC-32")
    assert found[2].startswith(f"{first}: layers.0.attention.wo.weight holds 2 numbers that are not finite")
    assert "first nan at [2, 3]" in found[2]
    assert found[3].startswith(f"{second}: output.weight holds 1 number that is not finite, the first -inf at [5, 0]")


def test_a_single_fault_is_a_single_line(make_folder: MakeFolder) -> None:
    folder = make_folder("ckpt")
    spoil(folder, 0, "norm.weight", (4,), float("nan"))
    (fault,) = faults_of(folder)
    assert fault.startswith(f"{folder / 'consolidated.00.pth'}: norm.weight holds 1 number that is not finite")


def test_two_tensors_of_one_record_are_both_named(make_folder: MakeFolder) -> None:
    folder = make_folder("ckpt")

    def change(state: dict[str, Tensor]) -> None:
        both = torch.ones(64)
        both[3] = both[40] = float("nan")
        state["norm.weight"], state["layers.0.ffn_norm.weight"] = both[:32], both[32:]

    edit_shard(folder / "consolidated.00.pth", change)
    found = faults_of(folder)
    assert [fault.split(": ")[1].split()[0] for fault in found] == ["layers.0.ffn_norm.weight", "norm.weight"]
    assert "first nan at [8]" in found[0]
    assert "first nan at [3]" in found[1]


def test_spoilt_numbers_of_a_legacy_file_are_all_listed(make_folder: MakeFolder) -> None:
    folder = make_folder("ckpt")
    path = folder / "consolidated.00.pth"
    state = torch.load(path, weights_only=True)
    torch.save(state, path, _use_new_zipfile_serialization=False)
    assert deep(folder, allow_legacy=True).content_sha256 == content_digest(state)
    state["norm.weight"][1] = state["output.weight"][2, 3] = float("nan")
    torch.save(state, path, _use_new_zipfile_serialization=False)
    assert sorted(fault.split(": ")[1].split()[0] for fault in faults_of(folder, allow_legacy=True)) == [
        "norm.weight",
        "output.weight",
    ]


def test_copies_of_a_kv_head_that_are_not_equal_are_told(make_folder: MakeFolder, tmp_path: Path) -> None:
    # The first shard holds the first KV head, the second both: headers cannot compare a part with a whole.
    write_meta_folder(open_checkpoint(make_folder("source", n_heads=8, n_kv_heads=2)), tmp_path / "cut", 3)
    folder, name, later = tmp_path / "cut", "layers.1.attention.wk.weight", 1
    spoil(folder, later, name, (0, 0), 9.0)
    _list_anew(folder, later)
    (fault,) = faults_of(folder)
    assert fault.startswith(f"{folder / f'consolidated.{later:02d}.pth'}: {name} is not equal to its copy in another")


def _list_anew(folder: Path, rank: int) -> None:
    """Write a shard's checksums into shards.json, as its zip directory has them."""
    listed = json.loads((folder / "shards.json").read_text())
    with zipfile.ZipFile(folder / f"consolidated.{rank:02d}.pth") as archive:
        sums = {info.filename.partition("/")[2]: info.CRC for info in archive.infolist()}
    names = listed["shards"][rank]["crc32"]
    listed["shards"][rank]["crc32"] = {name: sums[f"data/{place}"] for place, name in enumerate(names)}
    (folder / "shards.json").write_text(json.dumps(listed))


def md5_lines(folder: Path, *names: str) -> str:
    return "".join(f"{hashlib.md5((folder / name).read_bytes()).hexdigest()}  {name}\n" for name in names)


def test_a_checklist_is_compared(make_folder: MakeFolder) -> None:
    folder = make_folder("ckpt", mp=2)
    shards = ("consolidated.00.pth", "consolidated.01.pth")
    lines = md5_lines(folder, *shards, "params.json")
    (folder / "checklist.chk").write_text(lines + f"{'0' * 32} *tokenizer.model\n\n")
    assert deep(folder).checklist == (
        *(ChecklistEntry(file=name, found="equal") for name in (*shards, "params.json")),
        ChecklistEntry(file="tokenizer.model", found="missing"),
    )
    # To correct params.json is no fault of the weights.
    (folder / "params.json").write_text((folder / "params.json").read_text() + " ")
    found = deep(folder).checklist
    assert found is not None
    assert found[2] == ChecklistEntry(file="params.json", found="different")


def test_a_shard_that_is_not_the_listed_one_is_refused(make_folder: MakeFolder) -> None:
    folder = make_folder("ckpt", mp=2)
    (folder / "checklist.chk").write_text(md5_lines(folder, "consolidated.00.pth", "consolidated.01.pth"))
    listed = (folder / "checklist.chk").read_text().split()[2]
    spoil(folder, 1, "output.weight", (0, 0), 0.25)
    found = hashlib.md5((folder / "consolidated.01.pth").read_bytes()).hexdigest()
    (fault,) = faults_of(folder)
    assert f"{folder / 'consolidated.01.pth'}: is not the file that checklist.chk lists" in fault
    assert f"(MD5 {found}, listed {listed})" in fault


def test_progress_ends_at_the_bytes_that_were_read(make_folder: MakeFolder) -> None:
    folder = make_folder("ckpt", mp=2)
    told: list[tuple[int, int]] = []
    report = read_deeply(open_checkpoint(folder), lambda done, total: told.append((done, total)))
    assert told[-1] == (report.read_bytes, report.read_bytes)
    assert [done for done, _ in told] == sorted(done for done, _ in told)


def test_a_file_that_is_changed_meanwhile_is_refused(make_folder: MakeFolder) -> None:
    folder = make_folder("ckpt")
    path = folder / "consolidated.00.pth"

    def touch(done: int, total: int) -> None:
        if done == total:
            path.touch()

    with pytest.raises(RefusedError, match=f"{re.escape(str(path))}: was changed while it was being read"):
        read_deeply(open_checkpoint(folder), touch)


@pytest.mark.parametrize("fail", [KeyboardInterrupt, ZeroDivisionError])
def test_what_stops_a_thread_stops_the_reading(make_folder: MakeFolder, fail: type[BaseException]) -> None:
    threads = torch.get_num_threads()

    def stop(_done: int, _total: int) -> None:
        raise fail

    progress: Callable[[int, int], None] = stop
    with pytest.raises(fail):
        read_deeply(open_checkpoint(make_folder("ckpt", mp=2)), progress)
    assert torch.get_num_threads() == threads
