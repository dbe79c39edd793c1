"""GGUF files of tiny models of transformers', opened as checkpoints: the same numbers, or a reason."""

import re
import sys
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Kind
from torch import Tensor
from transformers import LlamaForCausalLM

from model.checkpoint.checkpoint import Checkpoint
from model.checkpoint.opening import open_checkpoint
from model.checkpoint.reading import open_weights
from model.checkpoint.reshard import write_meta_folder
from model.gguf.folder import open_gguf, unpacked
from model.params import RopeScaling
from parallel.errors import RefusedError
from parallel.slices import Slice
from tests.gguf_files import Change, divisors, save_gguf, tensors_of
from tests.hugging_face import KINDS, STRETCHED, meta_weights, same_bits, save_llama
from tests.reference import merged_weights

DTYPES = {Kind.F32: torch.float32, Kind.F16: torch.float16, Kind.BF16: torch.bfloat16}


@pytest.fixture
def llama(tmp_path: Path) -> LlamaForCausalLM:
    return save_llama(tmp_path / "hf", num_key_value_heads=2)


def weights_of(checkpoint: Checkpoint) -> dict[str, Tensor]:
    with open_weights(checkpoint) as reader:
        return {weight.name: reader.read(weight, Slice(0, weight.length)) for weight in checkpoint.weights}


def expected(model: LlamaForCausalLM) -> dict[str, Tensor]:
    return meta_weights(dict(model.state_dict()), 4, model.config.num_key_value_heads)


@pytest.mark.parametrize("stored", DTYPES, ids=lambda kind: kind.name)
@pytest.mark.parametrize("kind", KINDS)
def test_a_file_of_plain_numbers_gives_metas_weights_to_the_bit(tmp_path: Path, kind: str, stored: Kind) -> None:
    model = save_llama(tmp_path / "hf", DTYPES[stored], **KINDS[kind])
    checkpoint = open_checkpoint(save_gguf(tmp_path / "x.gguf", model, stored))
    assert (checkpoint.layout, checkpoint.mp, checkpoint.folder.name) == ("gguf", 1, "x.gguf")
    assert checkpoint.dtype == str(DTYPES[stored]).removeprefix("torch.")
    assert checkpoint.tied == KINDS[kind].get("tie_word_embeddings", False)
    found, wanted = weights_of(checkpoint), expected(model)
    assert found.keys() == wanted.keys()
    assert all(same_bits(found[name], wanted[name]) for name in wanted)


def test_the_sizes_are_those_of_the_model(tmp_path: Path, llama: LlamaForCausalLM) -> None:
    params = open_gguf(save_gguf(tmp_path / "x.gguf", llama)).params
    assert (params.dim, params.n_layers, params.n_heads, params.n_kv_heads) == (32, 2, 4, 2)
    assert (params.ffn_dim, params.vocab_size, params.norm_eps, params.rope_theta) == (48, 40, 1e-5, 10000.0)
    assert params.rope_scaling is None


def test_a_norm_that_the_matrices_dtype_cannot_hold_stays_as_it_is(tmp_path: Path, llama: LlamaForCausalLM) -> None:
    llama = llama.bfloat16()
    odd = np.full(32, 1.001, np.float32)
    path = save_gguf(tmp_path / "x.gguf", llama, Kind.BF16, tensors={"blk.1.ffn_norm.weight": odd})
    checkpoint = open_gguf(path)
    found = weights_of(checkpoint)
    assert torch.equal(found["layers.1.ffn_norm.weight"], torch.from_numpy(odd))
    assert found["layers.0.ffn_norm.weight"].dtype == torch.bfloat16
    assert f"{path}: holds bfloat16 and float32; dtype auto takes bfloat16" in checkpoint.notes


@pytest.mark.parametrize("kind", [Kind.Q8_0, Kind.Q4_0, Kind.Q6_K, Kind.Q4_K, Kind.IQ2_XS], ids=lambda kind: kind.name)
def test_quantised_weights_are_what_the_package_decodes(tmp_path: Path, kind: Kind) -> None:
    model = save_llama(tmp_path / "hf", hidden_size=256, intermediate_size=256, num_hidden_layers=1)
    path = save_gguf(tmp_path / "x.gguf", model, kind)
    checkpoint = open_gguf(path)
    assert checkpoint.dtype == "float32"
    assert any(f"its {kind.name} weights become float32, 0.00" in note for note in checkpoint.notes)
    found = weights_of(checkpoint)
    names = {"token_embd": "tok_embeddings", "output": "output", "blk.0.attn_k": "layers.0.attention.wk"}
    names |= {"blk.0.ffn_down": "layers.0.feed_forward.w2", "blk.0.attn_norm": "layers.0.attention_norm"}
    for tensor in gguf.GGUFReader(path).tensors:
        name = names.get(tensor.name.removesuffix(".weight"))
        if name is not None:
            whole = gguf.dequantize(tensor.data, tensor.tensor_type)
            assert torch.equal(found[f"{name}.weight"], torch.from_numpy(np.array(whole)))


@pytest.mark.parametrize("mp", [1, 2, 3])
def test_a_folder_in_metas_layout_is_written(tmp_path: Path, llama: LlamaForCausalLM, mp: int) -> None:
    checkpoint = open_gguf(save_gguf(tmp_path / "x.gguf", llama))
    with unpacked(checkpoint) as source:
        write_meta_folder(source, tmp_path / "meta", mp)
    assert not source.folder.exists()
    found = weights_of(open_checkpoint(tmp_path / "meta"))
    assert all(same_bits(found[name], wanted) for name, wanted in expected(llama).items())
    if mp == 2:
        merged = merged_weights(tmp_path / "meta")
        assert all(torch.equal(merged[name], wanted) for name, wanted in expected(llama).items())


@pytest.mark.parametrize("factor", [4.0, 8.0, 32.0, 16.5])
@pytest.mark.parametrize("width", [32, 512])
def test_llama_3_1s_scaling_is_found_again(tmp_path: Path, factor: float, width: int) -> None:
    stretched = {**STRETCHED, "factor": factor}
    sizes = {"hidden_size": width, "num_hidden_layers": 1, "vocab_size": 8, "intermediate_size": 8}
    model = save_llama(tmp_path / "hf", rope_parameters=stretched, max_position_embeddings=65536, **sizes)
    params = open_gguf(save_gguf(tmp_path / "x.gguf", model)).params
    assert params.rope_scaling == RopeScaling(factor=factor)
    assert params.rope_theta == 500000.0
    assert f"scaled by {factor:g} (from rope_freqs.weight)" in params.rope_reason


@pytest.mark.parametrize(
    "changes",
    [{"low_freq_factor": 2.0}, {"high_freq_factor": 8.0}, {"original_max_position_embeddings": 4096}],
)
def test_another_scaling_is_refused(tmp_path: Path, changes: dict[str, Any]) -> None:
    stretched = {**STRETCHED, "factor": 8.0, **changes}
    model = save_llama(
        tmp_path / "hf", hidden_size=256, rope_parameters=stretched, max_position_embeddings=65536, num_hidden_layers=1
    )
    path = save_gguf(tmp_path / "x.gguf", model)
    with pytest.raises(
        RefusedError, match=r"x\.gguf: rope_freqs\.weight divides the rotary frequencies otherwise than"
    ):
        open_gguf(path)


@pytest.mark.parametrize("bad", [np.full(4, 0.5), np.full(4, np.nan), np.full(4, np.inf), np.zeros(4), -np.ones(4)])
def test_divisors_that_are_none_are_refused(tmp_path: Path, llama: LlamaForCausalLM, bad: np.ndarray) -> None:
    path = save_gguf(tmp_path / "x.gguf", llama, tensors={"rope_freqs.weight": bad.astype(np.float32)})
    with pytest.raises(RefusedError, match=r"rope_freqs\.weight divides the rotary frequencies otherwise than"):
        open_gguf(path)


def test_divisors_of_one_scale_nothing_and_their_number_is_checked(tmp_path: Path, llama: LlamaForCausalLM) -> None:
    whole = open_gguf(save_gguf(tmp_path / "x.gguf", llama)).params
    ones = {"rope_freqs.weight": np.ones(4, np.float32)}
    assert open_gguf(save_gguf(tmp_path / "x.gguf", llama, tensors=ones)).params == whole
    path = save_gguf(tmp_path / "z.gguf", llama, tensors={"rope_freqs.weight": np.ones(5, np.float32)})
    with pytest.raises(RefusedError, match=r"rope_freqs\.weight has 5 numbers; wanted 4"):
        open_gguf(path)


def set_key(key: str, value: Any) -> Change:
    """Changes a key, whatever the writer has put there."""

    def change(writer: gguf.GGUFWriter) -> None:
        writer.kv_data[0].pop(key, None)
        if value is None:
            return
        if isinstance(value, bool):
            writer.add_bool(key, value)
        elif isinstance(value, str):
            writer.add_string(key, value)
        elif isinstance(value, list):
            writer.add_array(key, value)
        elif isinstance(value, float):
            writer.add_float32(key, value)
        else:
            writer.add_uint32(key, value)

    return change


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("general.architecture", "qwen2", 'general.architecture is "qwen2"; wanted "llama"'),
        ("general.architecture", None, 'general.architecture is None; wanted "llama"'),
        ("llama.expert_count", 8, "llama.expert_count is 8; wanted 0: other models than Llama are not supported"),
        ("llama.attention.sliding_window", 4096, "llama.attention.sliding_window is 4096; wanted 0"),
        ("llama.attention.causal", False, "llama.attention.causal is False; wanted True"),
        ("llama.logit_scale", 8.0, "llama.logit_scale is 8.0; wanted 1"),
        ("llama.rope.scaling.type", "yarn", 'llama.rope.scaling.type is "yarn"; only Llama 3.1'),
        ("llama.rope.scaling.factor", 4.0, "llama.rope.scaling.factor is 4.0; wanted 1"),
        ("llama.rope.dimension_count", 4, "llama.rope.dimension_count is 4; wanted 8, the width over the heads"),
        ("llama.attention.key_length", 16, "llama.attention.key_length is 16; wanted 8"),
        ("llama.block_count", None, "key llama.block_count is missing; wanted a whole number of 1 to 4096"),
        ("llama.block_count", 0, "llama.block_count is 0; wanted a whole number of 1 to 4096"),
        ("llama.block_count", 1, "holds blk.1.attn_q.weight and 8 more, which a Llama of 1 layers does not have"),
        ("llama.block_count", 3, "lacks blk.2.attn_q.weight and 8 more; download it again"),
        ("llama.embedding_length", "32", 'llama.embedding_length is "32"; wanted a whole number'),
        ("llama.feed_forward_length", 64, "blk.0.ffn_gate.weight has shape [48, 32]; the metadata gives [64, 32]"),
        ("llama.attention.head_count", 6, "llama.embedding_length=32 over llama.attention.head_count=6 gives"),
        ("llama.attention.head_count_kv", [2, 4], "llama.attention.head_count_kv is a list of 2, so its layers differ"),
        ("llama.attention.head_count_kv", 3, "llama.attention.head_count_kv=3 does not divide"),
        ("llama.attention.layer_norm_rms_epsilon", float("nan"), "_epsilon is NaN; wanted a finite number of"),
        ("llama.vocab_size", 41, "llama.vocab_size is 41, but token_embd.weight has 40 rows"),
        ("tokenizer.ggml.tokens", ["a", "b"], "has 2 tokens, but token_embd.weight has 40 rows"),
        ("general.alignment", 48, "general.alignment is 48; wanted a power of two"),
    ],
)  # fmt: skip
def test_metadata_of_another_model_is_refused_by_key(
    tmp_path: Path, llama: LlamaForCausalLM, key: str, value: object, says: str
) -> None:
    path = save_gguf(tmp_path / "x.gguf", llama, change=set_key(key, value))
    with pytest.raises(RefusedError, match=re.escape(f"{path}: ") + ".*" + re.escape(says)):
        open_gguf(path)


@pytest.mark.parametrize("key", ["llama.vocab_size", "llama.rope.dimension_count", "llama.rope.freq_base"])
def test_keys_that_old_files_lack_are_told_from_the_rest(tmp_path: Path, llama: LlamaForCausalLM, key: str) -> None:
    whole = open_gguf(save_gguf(tmp_path / "x.gguf", llama)).params
    found = open_gguf(save_gguf(tmp_path / "x.gguf", llama, change=set_key(key, None))).params
    assert found == whole


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ({"without": "blk.1.ffn_up.weight"}, "lacks blk.1.ffn_up.weight; download it again"),
        ({"without": "token_embd.weight"}, "lacks token_embd.weight"),
        ({"tensors": {"blk.0.attn_q.bias": np.ones(32, np.float32)}}, "holds blk.0.attn_q.bias, which a Llama of 2"),
        ({"tensors": {"output_norm.weight": np.ones(31, np.float32)}}, "output_norm.weight has shape [31]; the"),
        ({"tensors": {"rope_freqs.weight": np.ones((2, 2), np.float32)}}, "rope_freqs.weight has shape [2, 2]; wan"),
    ],
)  # fmt: skip
def test_tensors_of_another_model_are_refused_by_name(
    tmp_path: Path, llama: LlamaForCausalLM, how: dict[str, Any], says: str
) -> None:
    path = save_gguf(tmp_path / "x.gguf", llama, **how)
    with pytest.raises(RefusedError, match=re.escape(f"{path}: {says}")):
        open_gguf(path)


def test_rotary_frequencies_of_old_converters_are_passed_over(tmp_path: Path, llama: LlamaForCausalLM) -> None:
    old = {"blk.0.attn_rot_embd.weight": np.ones(4, np.float32), "rope.freqs": np.ones(4, np.float32)}
    checkpoint = open_gguf(save_gguf(tmp_path / "x.gguf", llama, tensors=old))
    assert all(same_bits(weights_of(checkpoint)[name], wanted) for name, wanted in expected(llama).items())
    assert sum(entry.nbytes for entry in checkpoint.files[0].tensors.values()) == sum(
        tensor.nbytes for tensor in tensors_of(llama).values()
    )


@pytest.mark.parametrize(
    ("value", "name", "place"),
    [(np.nan, "blk.1.ffn_down.weight", [31, 40]), (-np.inf, "output_norm.weight", [3])],
)
def test_a_number_that_is_not_finite_is_named(
    tmp_path: Path, llama: LlamaForCausalLM, value: float, name: str, place: list[int]
) -> None:
    spoilt = tensors_of(llama)[name].copy()
    spoilt[tuple(place)] = value
    checkpoint = open_gguf(save_gguf(tmp_path / "x.gguf", llama, tensors={name: spoilt}))
    with pytest.raises(RefusedError, match=re.escape(f"x.gguf: {name} holds {value} at {place}, which is no number")):
        weights_of(checkpoint)


def test_a_file_that_changes_meanwhile_is_refused(tmp_path: Path, llama: LlamaForCausalLM) -> None:
    path = save_gguf(tmp_path / "x.gguf", llama)
    checkpoint = open_gguf(path)
    path.write_bytes(path.read_bytes() + b"\0")
    with pytest.raises(RefusedError, match=r"x\.gguf: was changed while it was being read"):
        weights_of(checkpoint)


def test_a_split_file_is_read_as_one(tmp_path: Path, llama: LlamaForCausalLM) -> None:
    save_gguf(tmp_path / "x.gguf", llama, Kind.F16, split=8)
    parts = sorted(tmp_path.glob("*.gguf"))
    assert [part.name for part in parts] == [f"x-0000{n}-of-00003.gguf" for n in (1, 2, 3)]
    whole = weights_of(open_gguf(save_gguf(tmp_path / "hf" / "x.gguf", llama, Kind.F16)))
    for given in (tmp_path, *parts):
        checkpoint = open_checkpoint(given)
        assert (checkpoint.folder, len(checkpoint.files)) == (parts[0], 3)
        found = weights_of(checkpoint)
        assert all(same_bits(found[name], wanted) for name, wanted in whole.items())
    parts[1].rename(tmp_path / "aside")
    with pytest.raises(
        RefusedError, match=r"is one of 3 parts, and 1 of them missing beside it: x-00002-of-00003\.gguf"
    ):
        open_checkpoint(parts[2])
    parts[1].write_bytes(parts[2].read_bytes())
    with pytest.raises(RefusedError, match=r"x-00002-of-00003\.gguf: says that its split\.no is 2 of 3; wanted 1 of 3"):
        open_checkpoint(parts[0])
    alone = parts[0].rename(tmp_path / "alone.gguf")
    with pytest.raises(RefusedError, match=r"alone\.gguf: says that it is one of 3 parts; wanted the name that it had"):
        open_checkpoint(alone)


def test_a_folder_is_read_where_it_holds_one_file_and_no_other_weights(tmp_path: Path, llama: LlamaForCausalLM) -> None:
    folder = tmp_path / "download"
    folder.mkdir()
    path = save_gguf(folder / "x.Q8_0.gguf", llama, Kind.Q8_0)
    assert open_checkpoint(folder).folder == path
    (folder / "x.Q4_0.gguf").write_bytes(path.read_bytes())
    with pytest.raises(
        RefusedError, match=r"holds 2 GGUF files \(x\.Q4_0\.gguf, x\.Q8_0\.gguf\); give the path of one"
    ):
        open_checkpoint(folder)
    (tmp_path / "hf" / "x.gguf").write_bytes(path.read_bytes())
    assert open_checkpoint(tmp_path / "hf").layout == "hf"


def test_without_the_package_its_name_is_told(
    tmp_path: Path, llama: LlamaForCausalLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = save_gguf(tmp_path / "x.gguf", llama)
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(RefusedError, match=re.escape('install it with: pip install "shardrun[gguf]"')):
        open_checkpoint(path)


def test_the_divisors_of_these_tests_are_transformers_own(tmp_path: Path) -> None:
    model = save_llama(tmp_path, rope_parameters={**STRETCHED, "factor": 8.0}, hidden_size=512)
    found = divisors(model)
    assert (float(found[0]), float(found[-1])) == pytest.approx((1, 8), rel=1e-6)
    assert len(found.unique()) > 4
