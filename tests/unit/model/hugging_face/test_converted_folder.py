"""What a converted folder holds besides the weights, and what is said and left where one cannot be made."""

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from model.checkpoint.opening import open_checkpoint
from model.hugging_face.writing import write_hugging_face_folder
from model.tokenizers.base import Tokenizer
from parallel.errors import RefusedError
from tests.hugging_face import edit_config, save_llama, stored_tensors
from tests.reference import merged_weights
from tests.unit.model.checkpoint.folders import assert_same, to_hugging_face, to_meta

MakeFolder = Callable[..., Path]


def test_large_weights_are_dealt_out_to_files_with_an_index(make_folder: MakeFolder, tmp_path: Path) -> None:
    source = make_folder("source")
    hf = to_hugging_face(source, tmp_path / "hf", max_file_bytes=10_000)
    files = sorted(path.name for path in hf.glob("*.safetensors"))
    count = len(files)
    assert count > 3
    assert files == [f"model-{number:05d}-of-{count:05d}.safetensors" for number in range(1, count + 1)]
    index = json.loads((hf / "model.safetensors.index.json").read_text())
    state = stored_tensors(hf)
    assert index["metadata"]["total_size"] == sum(4 * tensor.numel() for tensor in state.values())
    assert index["weight_map"].keys() == state.keys()
    # One matrix of the feed-forward layer is larger than that, and has a file of its own.
    sizes = [(hf / name).stat().st_size for name in files]
    assert max(sizes) > 10_000
    AutoModelForCausalLM.from_pretrained(hf)
    back = to_meta(hf, tmp_path / "back")
    assert_same(merged_weights(back), merged_weights(source))


def test_a_folder_of_bin_files_becomes_safetensors_and_keeps_its_config(tmp_path: Path) -> None:
    source = tmp_path / "source"
    model = save_llama(source, max_position_embeddings=77)
    wanted = stored_tensors(source)
    (source / "model.safetensors").unlink()
    torch.save(model.state_dict(), source / "pytorch_model.bin")
    hf = to_hugging_face(source, tmp_path / "hf")
    assert_same(stored_tensors(hf), wanted)
    assert json.loads((hf / "config.json").read_text()) == json.loads((source / "config.json").read_text())


def test_the_tokenizer_gives_the_same_ids_in_transformers(
    make_folder: MakeFolder, tmp_path: Path, tokenizer: Tokenizer
) -> None:
    source = make_folder("source", vocab_size=tokenizer.n_words)
    shutil.copyfile(tokenizer.path, source / "tokenizer.model")
    hf = to_hugging_face(source, tmp_path / "hf")
    theirs = AutoTokenizer.from_pretrained(hf)
    for text in ("The hare ran over the field.", "  two  spaces, a line\n\n and 345", "\u00e9t\u00e9 \U0001f642", ""):
        assert theirs(text).input_ids == tokenizer.encode(text, bos=True, eos=False)
    assert (theirs.bos_token_id, theirs.eos_token_id) == (tokenizer.bos_id, tokenizer.eos_id)
    for name in ("config.json", "generation_config.json"):
        content = json.loads((hf / name).read_text())
        assert (content["bos_token_id"], content["eos_token_id"]) == (tokenizer.bos_id, tokenizer.eos_id)


def test_small_files_come_along_and_the_source_is_left_as_it_was(make_folder: MakeFolder, tmp_path: Path) -> None:
    source = make_folder("source")
    papers = {"LICENSE.txt": "L", "USE_POLICY.md": "U", "README.md": "R", "chat_template.jinja": "{}"}
    for name, text in papers.items():
        (source / name).write_text(text)
    (source / "notes.txt").write_text("mine")
    before = {path.name: path.read_bytes() for path in source.iterdir()}
    hf = to_hugging_face(source, tmp_path / "hf")
    assert {path.name: path.read_bytes() for path in source.iterdir()} == before
    assert {name: (hf / name).read_text() for name in papers} == papers
    assert sorted(set(os.listdir(hf)) - set(papers)) == ["config.json", "generation_config.json", "model.safetensors"]


def test_what_the_folder_lacks_is_said(make_folder: MakeFolder, tmp_path: Path) -> None:
    source = make_folder("source")
    notes = write_hugging_face_folder(open_checkpoint(source), tmp_path / "hf")
    assert notes == [f"{source}: has no tokenizer; put its files into the new folder yourself"]


def test_a_damaged_weight_is_named_and_nothing_is_left(make_folder: MakeFolder, tmp_path: Path) -> None:
    source = make_folder("source")
    path = source / "consolidated.00.pth"
    entry = open_checkpoint(source).files[0].tensors["layers.1.attention.wo.weight"]
    content = bytearray(path.read_bytes())
    content[entry.start + 5] ^= 1
    path.write_bytes(content)
    with pytest.raises(RefusedError, match=r"consolidated\.00\.pth: layers\.1\.attention\.wo\.weight is damaged"):
        to_hugging_face(source, tmp_path / "hf")
    assert os.listdir(tmp_path) == ["source"]


def test_a_number_that_is_not_finite_is_named(tmp_path: Path) -> None:
    source = tmp_path / "source"
    save_llama(source)
    path = source / "model.safetensors"
    entry = open_checkpoint(source).files[0].tensors["model.layers.1.mlp.up_proj.weight"]
    content = bytearray(path.read_bytes())
    content[entry.start : entry.start + 4] = b"\0\0\xc0\x7f"
    path.write_bytes(content)
    with pytest.raises(
        RefusedError, match=r"model\.safetensors: model\.layers\.1\.mlp\.up_proj\.weight holds 1 number"
    ):
        to_meta(source, tmp_path / "meta")
    assert os.listdir(tmp_path) == ["source"]


def test_a_damaged_tokenizer_and_a_place_that_is_taken_are_refused_before_writing(
    make_folder: MakeFolder, tmp_path: Path
) -> None:
    source = make_folder("source")
    with pytest.raises(RefusedError, match=f"{re.escape(str(source))}: is there already"):
        to_hugging_face(source, source)
    (source / "tokenizer.model").write_bytes(b"no tokenizer")
    with pytest.raises(RefusedError, match=r"tokenizer\.model: is not a SentencePiece model"):
        to_hugging_face(source, tmp_path / "hf")
    assert os.listdir(tmp_path) == ["source"]


def test_progress_ends_at_the_bytes_that_were_written(make_folder: MakeFolder, tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    hf = to_hugging_face(
        make_folder("source"), tmp_path / "hf", progress=lambda done, total: told.append((done, total))
    )
    size = sum(4 * tensor.numel() for tensor in stored_tensors(hf).values())
    assert told[-1] == (size, size)
    assert [done for done, _ in told] == sorted({done for done, _ in told})


def test_a_config_without_a_spelling_of_its_own_is_carried_from_hugging_face_to_hugging_face(tmp_path: Path) -> None:
    save_llama(tmp_path / "source")
    edit_config(tmp_path / "source", something_of_its_own=7)
    hf = to_hugging_face(tmp_path / "source", tmp_path / "hf")
    assert json.loads((hf / "config.json").read_text())["something_of_its_own"] == 7


def private_bytes() -> int:
    """Memory of this process that is not pages of a file."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.partition("RssAnon:")[2].split()[0])


def test_memory_holds_a_tensor_and_not_the_model(make_folder: MakeFolder, tmp_path: Path) -> None:
    source = make_folder("source", dim=512, n_layers=6, vocab_size=2048)
    seen: list[int] = []
    before = private_bytes()
    hf = to_hugging_face(source, tmp_path / "hf", progress=lambda *_: seen.append(private_bytes() - before))
    written = (hf / "model.safetensors").stat().st_size
    assert written > 75 * 2**20
    # The largest tensor has 4 MiB.
    assert max(seen) < 24 * 2**20
