"""Folders that transformers saved, opened as they are."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from model.checkpoint.checkpoint import Checkpoint
from model.checkpoint.opening import open_checkpoint
from model.checkpoint.reading import open_weights
from model.hugging_face.folder import open_hugging_face_folder
from parallel.errors import RefusedError
from parallel.slices import Slice
from tests.hugging_face import KINDS, edit_config, meta_weights, same_bits, save_llama, stored_tensors

INDEX = "model.safetensors.index.json"
EMBEDDING, OUTPUT = "model.embed_tokens.weight", "lm_head.weight"


def weights_of(checkpoint: Checkpoint) -> dict[str, Tensor]:
    with open_weights(checkpoint) as reader:
        return {weight.name: reader.read(weight, Slice(0, weight.length)).clone() for weight in checkpoint.weights}


def expected(folder_state: dict[str, Tensor], kind: str) -> dict[str, Tensor]:
    state = dict(folder_state)
    state.setdefault(OUTPUT, state[EMBEDDING])
    return meta_weights(state, 4, KINDS[kind].get("num_key_value_heads", 4))


def save_bin(folder: Path, state: dict[str, Tensor], files: int = 1) -> None:
    """The files that transformers wrote before safetensors."""
    for path in folder.glob("*.safetensors*"):
        path.unlink()
    if files == 1:
        torch.save(state, folder / "pytorch_model.bin")
        return
    names = {key: f"pytorch_model-{1 + number % files:05d}-of-{files:05d}.bin" for number, key in enumerate(state)}
    for name in set(names.values()):
        torch.save({key: state[key] for key in state if names[key] == name}, folder / name)
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": names}))


@pytest.mark.parametrize("shard_size", ["1GB", "10KB"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", KINDS)
def test_a_folder_that_transformers_saved_is_opened_to_the_bit(
    tmp_path: Path, kind: str, dtype: torch.dtype, shard_size: str
) -> None:
    save_llama(tmp_path, dtype, shard_size, **KINDS[kind])
    assert (tmp_path / INDEX).exists() == (shard_size == "10KB")
    checkpoint = open_checkpoint(tmp_path)
    assert (checkpoint.layout, checkpoint.mp, checkpoint.notes) == ("hf", 1, ())
    assert checkpoint.dtype == str(dtype).removeprefix("torch.")
    assert checkpoint.tied == KINDS[kind].get("tie_word_embeddings", False)
    found, wanted = weights_of(checkpoint), expected(stored_tensors(tmp_path), kind)
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert same_bits(found[name], tensor), name


@pytest.mark.parametrize("files", [1, 3])
@pytest.mark.parametrize("kind", ["llama 2", "tied"])
def test_files_of_before_safetensors_are_opened_to_the_bit(tmp_path: Path, kind: str, files: int) -> None:
    model = save_llama(tmp_path, **KINDS[kind])
    # It holds lm_head too where it is tied, as one storage; and the frequencies, as old versions saved them.
    state = {name: tensor.detach() for name, tensor in model.state_dict().items()}
    state |= {f"model.layers.{n}.self_attn.rotary_emb.inv_freq": torch.ones(4) for n in range(2)}
    wanted = expected(stored_tensors(tmp_path), kind)
    save_bin(tmp_path, state, files)
    found = weights_of(open_checkpoint(tmp_path))
    assert found.keys() == wanted.keys()
    assert all(same_bits(found[name], tensor) for name, tensor in wanted.items())


def test_a_legacy_bin_is_read_only_where_that_is_asked_for(tmp_path: Path) -> None:
    model = save_llama(tmp_path)
    wanted = expected(stored_tensors(tmp_path), "llama 2")
    save_bin(tmp_path, {})
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    with pytest.raises(RefusedError, match=r"pytorch_model\.bin: is a legacy PyTorch file .* --allow_legacy"):
        open_hugging_face_folder(tmp_path)
    found = weights_of(open_hugging_face_folder(tmp_path, allow_legacy=True))
    assert all(same_bits(found[name], tensor) for name, tensor in wanted.items())


def test_a_tied_folder_that_kept_the_output_instead_of_the_embedding_is_opened(tmp_path: Path) -> None:
    save_llama(tmp_path, **KINDS["tied"])
    state = stored_tensors(tmp_path)
    wanted = expected(state, "tied")
    save_file({OUTPUT if key == EMBEDDING else key: tensor for key, tensor in state.items()}, single(tmp_path))
    found = weights_of(open_checkpoint(tmp_path))
    assert all(same_bits(found[name], tensor) for name, tensor in wanted.items())


def test_two_weights_that_the_config_ties_but_the_files_tell_apart_stay_apart(tmp_path: Path) -> None:
    """As in transformers 5, which unties them."""
    save_llama(tmp_path, **KINDS["tied"])
    state = stored_tensors(tmp_path)
    other = state[EMBEDDING] + 1
    save_file({**state, OUTPUT: other}, single(tmp_path))
    checkpoint = open_checkpoint(tmp_path)
    assert not checkpoint.tied
    assert same_bits(weights_of(checkpoint)["output.weight"], other)


@pytest.mark.parametrize(
    ("name", "content", "dim"),
    [
        (None, b"", 1),
        ("tokenizer.model", b"IQ== 0\nIg== 1\n", 0),
        ("tokenizer.model", b"\n\x0e\n\x05<unk>\x15\0\0\0\0\x18\x02", 1),
        ("tokenizer.json", b'{"model": {"type": "BPE", "byte_fallback": false}}', 0),
        ("tokenizer.json", b'{"model": {"type": "BPE", "byte_fallback":  true}}', 1),
    ],
)
def test_the_embedding_is_cut_as_in_the_generation_that_the_tokenizer_tells(
    tmp_path: Path, name: str | None, content: bytes, dim: int
) -> None:
    folder = tmp_path / "inner"
    save_llama(folder)
    if name is not None:
        (folder / name).write_bytes(content)
    assert open_checkpoint(folder).embedding_dim == dim


def test_another_dtype_than_the_config_says_is_noted(tmp_path: Path) -> None:
    save_llama(tmp_path)
    edit_config(tmp_path, dtype="bfloat16")
    assert open_checkpoint(tmp_path).notes == (
        f"{tmp_path / 'config.json'}: says bfloat16, but the weights are float32; dtype auto takes float32",
    )


def test_links_are_followed_as_in_hugging_faces_cache(tmp_path: Path) -> None:
    save_llama(tmp_path / "blobs")
    (tmp_path / "snapshot").mkdir()
    for path in (tmp_path / "blobs").iterdir():
        (tmp_path / "snapshot" / path.name).symlink_to(Path("..") / "blobs" / path.name)
    assert len(weights_of(open_checkpoint(tmp_path / "snapshot"))) == 21


def single(folder: Path) -> Path:
    return folder / "model.safetensors"


def change(folder: Path, edit: Callable[[dict[str, Tensor]], object]) -> None:
    state = stored_tensors(folder)
    edit(state)
    save_file(state, single(folder))


def rename(old: str, new: str) -> Callable[[Path], None]:
    return lambda folder: change(folder, lambda state: state.update({new: state.pop(old)}))


def edit_index(key: str, file: str | None) -> Callable[[Path], None]:
    """Places `key` in `file`, or takes it out."""

    def edit(folder: Path) -> None:
        content = json.loads((folder / INDEX).read_text())
        listed = {**content["weight_map"], key: file}
        content["weight_map"] = {key: file for key, file in listed.items() if file is not None}
        (folder / INDEX).write_text(json.dumps(content))

    return edit


def without_prefix(folder: Path) -> None:
    state = stored_tensors(folder)
    save_file({key.removeprefix("model."): tensor for key, tensor in state.items()}, single(folder))


K0 = "model.layers.0.self_attn.k_proj.weight"
SINGLE_FAULTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "no config": (lambda folder: (folder / "config.json").unlink(), "config.json: does not exist; a Hugging Face"),
    "a missing key": (
        lambda folder: change(folder, lambda state: state.pop(K0)),
        f"model.safetensors: {K0} missing; download it again",
    ),
    "missing keys": (
        lambda folder: change(folder, lambda state: [state.pop(key) for key in list(state) if ".mlp." in key]),
        "model.safetensors: model.layers.0.mlp.gate_proj.weight and 5 more missing",
    ),
    "no lm_head": (
        lambda folder: change(folder, lambda state: state.pop(OUTPUT)),
        "lm_head.weight missing, and tie_word_embeddings is false in config.json; write true",
    ),
    "no prefix": (
        without_prefix,
        "model.embed_tokens.weight and 19 more missing, but embed_tokens.weight is there: the weights were saved "
        "without the layer that gives logits (LlamaModel)",
    ),
    "a bias": (
        lambda folder: change(folder, lambda s: s.update({K0.replace("weight", "bias"): torch.ones(32)})),
        "holds model.layers.0.self_attn.k_proj.bias, which a Llama of 2 layers with this config.json does not have",
    ),
    "a layer too many": (lambda folder: edit_config(folder, num_hidden_layers=1), "and 8 more, which a Llama of 1"),
    "a layer too few": (lambda folder: edit_config(folder, num_hidden_layers=3), "model.layers.2.self_attn.q_proj"),
    "another shape": (
        lambda folder: edit_config(folder, num_key_value_heads=2),
        f"model.safetensors: {K0} has shape [32, 32]; ",
    ),
    "another vocabulary": (
        lambda folder: edit_config(folder, vocab_size=41),
        "model.embed_tokens.weight has shape [40, 32]; ",
    ),
    "int8": (
        lambda folder: change(folder, lambda state: state.update({K0: state[K0].to(torch.int8)})),
        f'model.safetensors: {K0} has dtype "I8"; wanted F32, F16, BF16',
    ),
    "cut short": (
        lambda folder: single(folder).write_bytes(single(folder).read_bytes()[:-100]),
        "model.safetensors: is cut short",
    ),
}
PARTS = sorted(f"model-{number:05d}-of-00012.safetensors" for number in range(1, 13))
INDEX_FAULTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "files missing": (
        lambda folder: [(folder / name).unlink() for name in PARTS[2:4]],
        f"2 of 12 files missing that {INDEX} lists: {PARTS[2]}, {PARTS[3]}; get the missing files",
    ),
    "no index": (
        lambda folder: (folder / INDEX).unlink(),
        f"holds {PARTS[0]} but no index that says what stands where ({INDEX})",
    ),
    "an index of nothing": (
        lambda folder: (folder / INDEX).write_text("{}"),
        f"{INDEX}: weight_map is null; wanted a file's name for each weight",
    ),
    "a key in another file": (
        edit_index(OUTPUT, PARTS[3]),
        f"{PARTS[3]}: lacks lm_head.weight, which {INDEX} says it holds",
    ),
    "a key that is not listed": (
        edit_index(K0, None),
        f"holds {K0}, which {INDEX} does not list",
    ),
    "a path that leads out": (
        edit_index(OUTPUT, "../model.safetensors"),
        f'{INDEX}: lm_head.weight is in "../model.safetensors"; wanted the name of a .safetensors file beside it',
    ),
    "a file of another kind": (
        edit_index(OUTPUT, "pytorch_model.bin"),
        f'{INDEX}: lm_head.weight is in "pytorch_model.bin"; wanted the name of a .safetensors file beside it',
    ),
    "two files swapped": (
        lambda folder: swap(folder / PARTS[0], folder / PARTS[1]),
        "the files are of different models, or one is damaged",
    ),
}


def swap(one: Path, other: Path) -> None:
    content = one.read_bytes()
    one.write_bytes(other.read_bytes())
    other.write_bytes(content)


@pytest.mark.parametrize(("spoil", "says"), SINGLE_FAULTS.values(), ids=SINGLE_FAULTS)
def test_a_folder_that_is_not_right_is_refused_with_file_and_key(
    tmp_path: Path, spoil: Callable[[Path], object], says: str
) -> None:
    save_llama(tmp_path)
    spoil(tmp_path)
    with pytest.raises(RefusedError, match=f"^{re.escape(str(tmp_path))}.*{re.escape(says)}"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize(("spoil", "says"), INDEX_FAULTS.values(), ids=INDEX_FAULTS)
def test_an_index_that_is_not_right_is_refused(tmp_path: Path, spoil: Callable[[Path], Any], says: str) -> None:
    save_llama(tmp_path, max_shard_size="10KB")
    assert sorted(path.name for path in tmp_path.glob("model-*")) == PARTS
    spoil(tmp_path)
    with pytest.raises(RefusedError, match=f"^{re.escape(str(tmp_path))}.*{re.escape(says)}"):
        open_checkpoint(tmp_path)


def test_a_folder_without_weights_is_refused_with_what_is_there(tmp_path: Path) -> None:
    save_llama(tmp_path)
    single(tmp_path).rename(tmp_path / "weights.bin")
    with pytest.raises(RefusedError, match=r"holds no weights; wanted config.json and model.safetensors.*weights\.bin"):
        open_hugging_face_folder(tmp_path)
