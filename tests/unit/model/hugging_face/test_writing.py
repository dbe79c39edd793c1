"""Meta's layout to Hugging Face's and back: every bit, at any MP, and what transformers makes of the result."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from model.checkpoint.opening import open_checkpoint
from tests.hugging_face import KINDS, meta_weights, save_llama, stored_tensors
from tests.reference import Reference, merged_weights
from tests.unit.model.checkpoint.folders import assert_same, to_hugging_face, to_meta

TRAINED = Path(__file__).resolve().parents[5] / "shared" / "models"
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
EMBEDDING, OUTPUT = "tok_embeddings.weight", "output.weight"
# Of TINY in tests/unit/model/conftest.py.
HEADS = 4

MakeFolder = Callable[..., Path]


def in_dtype(folder: Path, dtype: torch.dtype) -> Path:
    """The folder, its shards written anew in `dtype`."""
    for path in folder.glob("*.pth"):
        shard = torch.load(path, weights_only=True)
        torch.save({name: tensor.to(dtype) for name, tensor in shard.items()}, path)
    return folder


def test_the_weights_stand_under_hugging_faces_names_in_its_order_of_rows(
    make_folder: MakeFolder, tmp_path: Path
) -> None:
    """Held against a table of names and a turn of rows that are the tests' own."""
    source = make_folder("source", n_kv_heads=2)
    state = stored_tensors(to_hugging_face(source, tmp_path / "hf"))
    assert_same(meta_weights(state, HEADS, 2), merged_weights(source))


@pytest.mark.parametrize("embedding_dim", [0, 1])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("mp", [1, 2, 3, 4])
def test_meta_to_hugging_face_and_back_is_the_same_to_the_bit(
    make_folder: MakeFolder, tmp_path: Path, mp: int, dtype: torch.dtype, embedding_dim: int
) -> None:
    whole = in_dtype(make_folder("whole", n_kv_heads=2), dtype)
    source = to_meta(whole, tmp_path / "source", mp, embedding_dim)
    hf = to_hugging_face(source, tmp_path / "hf")
    assert_same(meta_weights(stored_tensors(hf), HEADS, 2), merged_weights(whole, dtype))
    back = to_meta(hf, tmp_path / "back", mp, embedding_dim)
    for path in source.glob("*.pth"):
        assert (back / path.name).read_bytes() == path.read_bytes()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("mp", [1, 2, 3, 4])
@pytest.mark.parametrize("kind", KINDS)
def test_hugging_face_to_meta_and_back_is_the_same_to_the_bit(
    tmp_path: Path, kind: str, mp: int, dtype: torch.dtype
) -> None:
    source = tmp_path / "source"
    save_llama(source, dtype, "10KB", **KINDS[kind])
    back = to_hugging_face(to_meta(source, tmp_path / "meta", mp, mp % 2), tmp_path / "back")
    assert_same(stored_tensors(back), stored_tensors(source))
    wanted, found = open_checkpoint(source), open_checkpoint(back)
    assert (found.params.rope_theta, found.params.rope_scaling) == (
        wanted.params.rope_theta,
        wanted.params.rope_scaling,
    )
    assert found.params.norm_eps == wanted.params.norm_eps
    assert (found.tied, found.dtype, found.notes) == (wanted.tied, wanted.dtype, ())


def test_kv_heads_that_the_shards_hold_twice_are_written_once(make_folder: MakeFolder, tmp_path: Path) -> None:
    """As in Llama 3.1 405B's MP16 files: 2 KV heads on 4 ranks, params.json counting 4."""
    whole = make_folder("whole", n_kv_heads=2)
    source = to_meta(whole, tmp_path / "source", 4)
    assert json.loads((source / "params.json").read_text())["n_kv_heads"] == 4
    hf = to_hugging_face(source, tmp_path / "hf")
    assert json.loads((hf / "config.json").read_text())["num_key_value_heads"] == 2
    assert_same(meta_weights(stored_tensors(hf), HEADS, 2), merged_weights(whole))


SCALED = {"use_scaled_rope": True, "rope_theta": 500000.0, "rope_scaling_factor": 4.0}


@pytest.mark.parametrize(
    "changes", [{}, {"n_kv_heads": 2, "norm_eps": 1e-6}, SCALED], ids=["llama 2", "grouped", "scaled"]
)
def test_transformers_computes_the_logits_of_the_uncut_reference(
    make_folder: MakeFolder, tmp_path: Path, changes: dict[str, Any]
) -> None:
    source = make_folder("source", mp=2, **changes)
    model = AutoModelForCausalLM.from_pretrained(to_hugging_face(source, tmp_path / "hf"), dtype=torch.float32)
    tokens = [1, 5, 9, 2, 17, 23, 0, 11]
    with torch.no_grad():
        found = model(torch.tensor([tokens])).logits[0]
    # Logits up to 10; both compute in float32, in another order.
    torch.testing.assert_close(found, Reference(source).logits(tokens), rtol=0, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_a_folder_of_transformers_gives_its_logits_in_metas_layout(tmp_path: Path, kind: str) -> None:
    model = save_llama(tmp_path / "source", **KINDS[kind])
    tokens = [1, 5, 9, 2, 17, 23, 0, 11]
    with torch.no_grad():
        wanted = model(torch.tensor([tokens])).logits[0]
    found = Reference(to_meta(tmp_path / "source", tmp_path / "meta", 2)).logits(tokens)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", ["stories260K", "stories15M"])
def test_a_trained_model_gives_its_logits_and_its_ids_in_transformers(tmp_path: Path, name: str) -> None:
    source = TRAINED / name
    if not source.is_dir():
        pytest.skip(f"the trained models are not at {TRAINED}; they lie beside the repository, not in it")
    hf = to_hugging_face(source, tmp_path / "hf")
    # stories15M has its embedding twice, and says so nowhere.
    assert json.loads((hf / "config.json").read_text())["tie_word_embeddings"]
    tokenizer = AutoTokenizer.from_pretrained(hf)
    tokens = tokenizer("Once upon a time, there was a little girl").input_ids
    model = AutoModelForCausalLM.from_pretrained(hf, dtype=torch.float32)
    with torch.no_grad():
        found = model(torch.tensor([tokens])).logits[0]
    torch.testing.assert_close(found, Reference(source).logits(tokens), rtol=0, atol=1e-4)
    text = tokenizer.decode(model.generate(torch.tensor([tokens]), max_new_tokens=8, do_sample=False)[0])
    assert text.startswith("<s> Once upon a time, there was a little girl named Lily.")


def with_tied_output(make_folder: MakeFolder, how: str) -> Path:
    source = make_folder("source")
    path = source / "consolidated.00.pth"
    shard = torch.load(path, weights_only=True)
    shard[OUTPUT] = shard[EMBEDDING].clone()
    if how == "a bit apart":
        shard[OUTPUT].view(torch.int32)[-1, -1] ^= 1
    if how == "zeros of two signs":
        shard[EMBEDDING][0, 0], shard[OUTPUT][0, 0] = 0.0, -0.0
    if how == "another dtype":
        shard[OUTPUT] = shard[OUTPUT].to(torch.bfloat16)
        shard[EMBEDDING] = shard[OUTPUT].float()
    torch.save(shard, path)
    return source


@pytest.mark.parametrize(("mp", "embedding_dim"), [(1, 1), (2, 0), (2, 1), (3, 1)])
@pytest.mark.parametrize("how", ["equal", "a bit apart", "zeros of two signs", "another dtype"])
def test_an_output_that_is_the_embedding_bit_for_bit_is_left_out_and_no_other(
    make_folder: MakeFolder, tmp_path: Path, how: str, mp: int, embedding_dim: int
) -> None:
    whole = with_tied_output(make_folder, how)
    hf = to_hugging_face(to_meta(whole, tmp_path / "meta", mp, embedding_dim), tmp_path / "hf")
    tied = how == "equal"
    state = stored_tensors(hf)
    assert ("lm_head.weight" in state) == (not tied)
    assert json.loads((hf / "config.json").read_text())["tie_word_embeddings"] == tied
    back = torch.load(to_meta(hf, tmp_path / "back") / "consolidated.00.pth", weights_only=True)
    assert_same(back, torch.load(whole / "consolidated.00.pth", weights_only=True))
