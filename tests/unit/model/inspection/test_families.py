"""Published params.json files, and what their shape is said to be."""

import json
from pathlib import Path
from typing import Any

import pytest

from model.checkpoint.params_json import read_params
from model.inspection.families import family_of
from model.params import Params

SEVEN_B = {"dim": 4096, "n_layers": 32, "n_heads": 32}
THIRTEEN_B = {"dim": 5120, "n_layers": 40, "n_heads": 40}
SEVENTY_B = {
    "dim": 8192,
    "n_layers": 80,
    "n_heads": 64,
    "n_kv_heads": 8,
    "multiple_of": 4096,
    "ffn_dim_multiplier": 1.3,
}
EIGHT_B = {**SEVEN_B, "n_kv_heads": 8, "multiple_of": 1024, "ffn_dim_multiplier": 1.3}
BIG = {
    "dim": 16384,
    "n_layers": 126,
    "n_heads": 128,
    "n_kv_heads": 8,
    "multiple_of": 4096,
    "ffn_dim_multiplier": 1.2,
}
LLAMA_2 = {"vocab_size": 32000}
LLAMA_3 = {"vocab_size": 128256, "rope_theta": 500000.0}
LLAMA_3_1 = {**LLAMA_3, "use_scaled_rope": True}
CODE = {"vocab_size": 32016, "rope_theta": 1000000}

FILES: list[tuple[dict[str, Any], str]] = [
    ({**SEVEN_B, **LLAMA_2}, "the shape of Llama 1 7B or Llama 2 7B"),
    ({**THIRTEEN_B, **LLAMA_2}, "the shape of Llama 1 13B or Llama 2 13B"),
    ({"dim": 6656, "n_layers": 60, "n_heads": 52, **LLAMA_2}, "the shape of Llama 1 30B"),
    ({"dim": 8192, "n_layers": 80, "n_heads": 64, **LLAMA_2}, "the shape of Llama 1 65B"),
    ({**SEVENTY_B, **LLAMA_2}, "the shape of Llama 2 70B"),
    ({**SEVEN_B, **CODE, "ffn_dim_multiplier": 1.0}, "the shape of Code Llama 7B"),
    # Code Llama 7B Python has no pieces for infilling.
    ({**SEVEN_B, **CODE, "vocab_size": 32000}, "the shape of Code Llama 7B"),
    ({**THIRTEEN_B, **CODE}, "the shape of Code Llama 13B"),
    (
        {"dim": 8192, "n_layers": 48, "n_heads": 64, "n_kv_heads": 8, "vocab_size": 32000, "rope_theta": 1e6},
        "the shape of Code Llama 34B",
    ),
    ({**SEVENTY_B, **CODE}, "the shape of Code Llama 70B"),
    ({**SEVENTY_B, **CODE, "rope_theta": 10000}, "the shape of Code Llama 70B"),
    ({**EIGHT_B, **LLAMA_3}, "the shape of Llama 3 8B"),
    ({**EIGHT_B, **LLAMA_3_1}, "the shape of Llama 3.1 8B"),
    ({**SEVENTY_B, **LLAMA_3}, "the shape of Llama 3 70B"),
    ({**SEVENTY_B, **LLAMA_3_1}, "the shape of Llama 3.1 70B or Llama 3.3 70B"),
    ({**BIG, **LLAMA_3_1}, "the shape of Llama 3.1 405B"),
    ({**BIG, **LLAMA_3_1, "n_kv_heads": 16}, "the shape of Llama 3.1 405B (MP 16)"),
    (
        {"dim": 2048, "n_layers": 16, "n_heads": 32, "n_kv_heads": 8, "ffn_dim_multiplier": 1.5, **LLAMA_3_1},
        "the shape of Llama 3.2 1B",
    ),
    (
        {"dim": 3072, "n_layers": 28, "n_heads": 24, "n_kv_heads": 8, "ffn_dim_multiplier": 1.0, **LLAMA_3_1},
        "the shape of Llama 3.2 3B",
    ),
]


def read(folder: Path, content: dict[str, Any]) -> Params:
    (folder / "params.json").write_text(json.dumps(content))
    return read_params(folder / "params.json")


@pytest.mark.parametrize(("content", "said"), FILES, ids=[said for _, said in FILES])
def test_a_published_file_has_the_shape_of_its_model(tmp_path: Path, content: dict[str, Any], said: str) -> None:
    assert family_of(read(tmp_path, content)) == said


@pytest.mark.parametrize(
    ("content", "said"),
    [
        # The vocabulary is left to the tokenizer, so only the base tells.
        ({**SEVENTY_B, "vocab_size": -1}, "the shape of Llama 2 70B or Code Llama 70B"),
        (
            {**SEVEN_B, "vocab_size": 32001},
            "the shape of Llama 1 7B or Llama 2 7B, but with a vocabulary of 32001",
        ),
        (
            {**EIGHT_B, **LLAMA_3, "rope_theta": 4e6},
            "the shape of Llama 3 8B, but with a rotary base of 4e+06",
        ),
        (
            {**EIGHT_B, **LLAMA_3_1, "rope_scaling_factor": 16},
            "the shape of Llama 3 8B or Llama 3.1 8B, but with rotary frequencies scaled by 16",
        ),
        (
            {"dim": 2048, "n_layers": 16, "n_heads": 32, "n_kv_heads": 8, "ffn_dim_multiplier": 1.5, **LLAMA_3},
            "the shape of Llama 3.2 1B, but with rotary frequencies that are not scaled",
        ),
    ],
)
def test_what_none_of_the_models_of_a_shape_has_is_said(tmp_path: Path, content: dict[str, Any], said: str) -> None:
    assert family_of(read(tmp_path, content)) == said


@pytest.mark.parametrize("change", [{"n_layers": 31}, {"dim": 4160}, {"n_kv_heads": 4}, {"multiple_of": 11264}])
def test_one_other_size_is_no_published_shape(tmp_path: Path, change: dict[str, int]) -> None:
    assert family_of(read(tmp_path, {**SEVEN_B, **LLAMA_2, **change})) == "no published shape"
