"""config.json: what is read and what is refused, held against the published files and transformers itself."""

import copy
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from model.hugging_face.config import config_of, read_config
from model.params import Params, RopeScaling
from model.rope import rotations
from parallel.errors import RefusedError

OLD_LLAMA_3: dict[str, Any] = {
    "rope_theta": 500000.0,
    "rope_scaling": {
        "factor": 8.0,
        "high_freq_factor": 4.0,
        "low_freq_factor": 1.0,
        "original_max_position_embeddings": 8192,
        "rope_type": "llama3",
    },
}
NEW_LLAMA_3 = {"rope_parameters": {**OLD_LLAMA_3["rope_scaling"], "rope_theta": 500000.0}}


def published(dim: int, ffn: int, layers: int, heads: int, vocabulary: int, **more: Any) -> dict[str, Any]:
    """The keys of a published config.json that a Llama is made of, and some of the others."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": dim,
        "intermediate_size": ffn,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "vocab_size": vocabulary,
        "rms_norm_eps": 1e-5,
        "hidden_act": "silu",
        "torch_dtype": "bfloat16",
        "transformers_version": "4.43.0",
        "max_position_embeddings": 4096,
        **more,
    }


LLAMA_2 = published(4096, 11008, 32, 32, 32000, rope_scaling=None, num_key_value_heads=32, pretraining_tp=1)
LLAMA_31 = published(4096, 14336, 32, 32, 128256, num_key_value_heads=8, attention_bias=False)


def transformers_config(raw: dict[str, Any]) -> LlamaConfig:
    """transformers writes into the objects that it is given."""
    return LlamaConfig(**copy.deepcopy(raw))


def read(folder: Path, raw: object) -> Params:
    path = folder / "config.json"
    path.write_text(json.dumps(raw))
    return read_config(path).params


def test_llama_1_whose_file_knows_no_kv_heads_has_as_many_as_heads(tmp_path: Path) -> None:
    raw = published(4096, 11008, 32, 32, 32000, rms_norm_eps=1e-6)
    params = read(tmp_path, raw)
    assert (params.n_heads, params.n_kv_heads, params.norm_eps) == (32, 32, 1e-6)
    assert (params.rope_theta, params.rope_scaling) == (10000.0, None)


def test_llama_2_is_read(tmp_path: Path) -> None:
    params = read(tmp_path, LLAMA_2)
    assert (params.dim, params.ffn_dim, params.n_layers, params.vocab_size) == (4096, 11008, 32, 32000)
    assert round(params.n_parameters / 1e9, 3) == 6.738


@pytest.mark.parametrize("rope", [OLD_LLAMA_3, NEW_LLAMA_3, {**OLD_LLAMA_3, **NEW_LLAMA_3}], ids=["4", "5", "both"])
def test_llama_3_1_is_read_in_the_spelling_of_transformers_4_and_5(tmp_path: Path, rope: dict[str, Any]) -> None:
    params = read(tmp_path, {**LLAMA_31, **rope})
    assert (params.rope_theta, params.rope_scaling) == (500000.0, RopeScaling(factor=8.0))
    assert params.rope_reason == "base from config.json; scaled by 8 (from config.json)"


@pytest.mark.parametrize(
    ("rope", "theta"),
    [
        ({"rope_theta": 1000000}, 1e6),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}}, 1e6),
        ({"rope_parameters": {"rope_theta": 1e6}}, 1e6),
        ({"rope_theta": 1e6, "rope_scaling": {"type": "default"}}, 1e6),
        ({"rope_parameters": {"rope_type": "default"}}, 1e4),
    ],
)
def test_an_unscaled_base_is_read_in_every_spelling(tmp_path: Path, rope: dict[str, Any], theta: float) -> None:
    params = read(tmp_path, {**LLAMA_2, **rope})
    assert (params.rope_theta, params.rope_scaling) == (theta, None)


def test_the_sizes_are_those_that_transformers_itself_writes(tmp_path: Path) -> None:
    transformers_config({**LLAMA_31, **OLD_LLAMA_3, "tie_word_embeddings": True}).save_pretrained(tmp_path)
    found = read_config(tmp_path / "config.json")
    assert found.tied
    assert found.params == read(tmp_path, {**LLAMA_31, **OLD_LLAMA_3})


FAMILIES = {
    "llama 1": published(4096, 11008, 32, 32, 32000, rms_norm_eps=1e-6),
    "llama 2 70b": published(8192, 28672, 80, 64, 32000, num_key_value_heads=8),
    "code llama": published(4096, 11008, 32, 32, 32016, rope_theta=1000000),
    "llama 3": published(4096, 14336, 32, 32, 128256, num_key_value_heads=8, rope_theta=500000.0),
    "llama 3.1": {**LLAMA_31, **OLD_LLAMA_3},
    "llama 3.2 1b": published(
        2048,
        8192,
        16,
        32,
        128256,
        num_key_value_heads=8,
        head_dim=64,
        tie_word_embeddings=True,
        rope_theta=500000.0,
        rope_scaling={**OLD_LLAMA_3["rope_scaling"], "factor": 32.0},
    ),
}
CONTEXTS = {
    "llama 1": 2048,
    "llama 2 70b": 4096,
    "code llama": 16384,
    "llama 3": 8192,
    "llama 3.1": 131072,
    "llama 3.2 1b": 131072,
}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_written_file_says_the_same_to_us_and_to_transformers(tmp_path: Path, family: str) -> None:
    params = read(tmp_path, FAMILIES[family])
    written = config_of(params, "bfloat16", family == "llama 3.2 1b", {"bos_token_id": 1, "eos_token_id": [2, 3]})
    (tmp_path / "config.json").write_text(json.dumps(written))
    found = read_config(tmp_path / "config.json")
    assert found.params == params
    assert (found.tied, found.dtype) == (family == "llama 3.2 1b", "bfloat16")

    theirs, wanted = AutoConfig.from_pretrained(tmp_path), transformers_config(FAMILIES[family])
    assert isinstance(theirs, LlamaConfig)
    assert theirs.rope_parameters == wanted.rope_parameters
    assert (theirs.bos_token_id, theirs.eos_token_id) == (1, [2, 3])
    assert theirs.max_position_embeddings == CONTEXTS[family]
    for key in ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads"):
        assert getattr(theirs, key) == getattr(wanted, key)
    for key in ("vocab_size", "rms_norm_eps", "tie_word_embeddings", "head_dim", "hidden_act", "dtype"):
        assert getattr(theirs, key) == getattr(wanted, key)


@pytest.mark.parametrize("family", FAMILIES)
def test_positions_turn_as_transformers_turns_them(tmp_path: Path, family: str) -> None:
    params = read(tmp_path, FAMILIES[family])
    speeds = LlamaRotaryEmbedding(transformers_config(FAMILIES[family])).inv_freq
    # The angle at the first position is the frequency itself; both are computed in float32.
    torch.testing.assert_close(rotations(params, 2)[1].angle(), speeds, rtol=2e-6, atol=0)


def test_a_written_file_is_the_spelling_that_transformers_4_knows() -> None:
    params = Params(
        dim=64,
        n_layers=1,
        n_heads=8,
        n_kv_heads=8,
        ffn_dim=172,
        vocab_size=512,
        norm_eps=1e-5,
        rope_theta=500000.0,
        rope_scaling=RopeScaling(factor=8.0),
        rope_reason="",
    )
    written = config_of(params, "float16", False, {})
    assert {key: written[key] for key in OLD_LLAMA_3} == OLD_LLAMA_3
    assert written["torch_dtype"] == "float16"
    assert "rope_parameters" not in written


FAULTS: list[tuple[dict[str, Any], str]] = [
    ({"model_type": "mistral"}, 'model_type is "mistral"; wanted "llama"'),
    ({"model_type": ...}, 'model_type is null; wanted "llama"'),
    ({"architectures": ["LlamaModel"]}, 'architectures is ["LlamaModel"]; wanted ["LlamaForCausalLM"]'),
    ({"quantization_config": {"bits": 4}}, "has a quantization_config, and quantised weights of Hugging Face"),
    ({"hidden_act": "gelu"}, 'hidden_act is "gelu"; wanted "silu"'),
    ({"attention_bias": True}, "attention_bias is true; wanted false"),
    ({"mlp_bias": True}, "mlp_bias is true; wanted false"),
    ({"partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5; wanted 1"),
    ({"head_dim": 64}, "head_dim is 64; wanted hidden_size over num_attention_heads, 128"),
    ({"hidden_size": ...}, "key 'hidden_size' is missing; wanted a whole number of 1 to"),
    ({"rms_norm_eps": ...}, "key 'rms_norm_eps' is missing; wanted a finite number"),
    ({"hidden_size": "4096"}, 'hidden_size is "4096"; wanted a whole number'),
    ({"hidden_size": -1}, "hidden_size is -1; wanted a whole number of 1 to"),
    ({"num_attention_heads": 33}, "hidden_size=4096 over num_attention_heads=33 gives 124.121 numbers a head"),
    ({"num_key_value_heads": 5}, "num_key_value_heads=5 does not divide num_attention_heads=32"),
    ({"vocab_size": 0}, "vocab_size is 0; wanted a whole number of 1 to"),
    ({"tie_word_embeddings": 1}, "tie_word_embeddings is 1; wanted true or false"),
    ({"rope_theta": float("nan")}, "rope_theta is NaN; wanted a finite number"),
    ({"rope_theta": [1]}, "rope_theta is [1]; wanted a finite number"),
    ({"rope_scaling": 8}, "rope_scaling is 8; wanted an object or null"),
    ({"rope_scaling": {"type": "linear", "factor": 2.0}}, 'rope_type "linear"; wanted default or llama3'),
    ({"rope_parameters": {"rope_type": "yarn"}}, 'rope_parameters has rope_type "yarn"; wanted default or llama3'),
    ({"rope_parameters": {"rope_theta": "1e4"}}, 'rope_parameters.rope_theta is "1e4"; wanted a finite number'),
    ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "rope_scaling lacks low_freq_factor; wanted a finite"),
    (
        {"rope_scaling": {**OLD_LLAMA_3["rope_scaling"], "low_freq_factor": 4.0}},
        "rope_scaling.low_freq_factor=4 is not below high_freq_factor=4",
    ),
    ({"rope_scaling": {"rope_type": "default", "factor": 2.0}}, "a key 'factor' that rope_type default does not have"),
    ({"rope_theta": 1e4, "rope_parameters": {"rope_theta": 1e6}}, "contradict each other; keep one spelling"),
    ({**OLD_LLAMA_3, "rope_parameters": {"rope_type": "default"}}, "contradict each other; keep one spelling"),
]


@pytest.mark.parametrize(("changes", "says"), FAULTS, ids=[says[:40] for _, says in FAULTS])
def test_what_would_compute_something_else_is_refused_by_key(
    tmp_path: Path, changes: dict[str, Any], says: str
) -> None:
    raw = {key: value for key, value in {**LLAMA_2, **changes}.items() if value is not ...}
    path = tmp_path / "config.json"
    with pytest.raises(RefusedError, match=f"^{re.escape(str(path))}: .*{re.escape(says)}"):
        read(tmp_path, raw)


def test_a_file_that_is_missing_or_no_object_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RefusedError, match="does not exist; a Hugging Face folder holds it beside its weights"):
        read_config(tmp_path / "config.json")
    with pytest.raises(RefusedError, match=r'holds a list; an object such as \{"model_type": "llama", ...\}'):
        read(tmp_path, [])
