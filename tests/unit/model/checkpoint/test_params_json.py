"""Sizes written to a params.json are read back in every number."""

import json
import random
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from model.checkpoint.params_json import params_json_of, read_params
from model.params import Params, RopeScaling
from parallel.errors import RefusedError

SMALL = Params(
    dim=64,
    n_layers=2,
    n_heads=8,
    n_kv_heads=4,
    ffn_dim=256,
    vocab_size=512,
    norm_eps=1e-5,
    rope_theta=10000.0,
    rope_scaling=None,
    rope_reason="",
)
LLAMA_3 = replace(SMALL, vocab_size=128256, rope_theta=500000.0)
EIGHT, THIRTY_TWO = RopeScaling(factor=8.0), RopeScaling(factor=32.0)


def numbers(params: Params) -> Params:
    """Without the words, and what they are made from."""
    return replace(params, rope_reason="", rope_given=None)


def written_and_read(folder: Path, params: Params) -> Params:
    path = folder / "params.json"
    path.write_text(json.dumps(params_json_of(params)))
    return read_params(path)


@pytest.mark.parametrize(
    ("dim", "ffn_dim", "multiple_of", "multiplier"),
    [
        (4096, 11008, 256, None),
        (5120, 13824, 256, None),
        (6656, 17920, 256, None),
        (8192, 22016, 256, None),
        (8192, 28672, 4096, 1.3),
        (4096, 14336, 1024, 1.3),
        (16384, 53248, 4096, 1.2),
        (2048, 8192, 256, 1.5),
        (3072, 8192, 256, None),
        (288, 768, 256, None),
        (64, 172, 4, None),
        (64, 171, 1, 171.5 / 170),
        (64, 2**20, 2**20, None),
        (64, 2 * 3**10, 2 * 3**10, None),
    ],
)
def test_the_published_widths_get_their_own_keys_and_others_some_that_give_them(
    tmp_path: Path, dim: int, ffn_dim: int, multiple_of: int, multiplier: float | None
) -> None:
    params = replace(SMALL, dim=dim, ffn_dim=ffn_dim)
    written = params_json_of(params)
    assert (written["multiple_of"], written.get("ffn_dim_multiplier")) == (multiple_of, multiplier)
    assert written_and_read(tmp_path, params).ffn_dim == ffn_dim


def test_any_width_can_be_written(tmp_path: Path) -> None:
    rng = random.Random(3)
    for _ in range(300):
        dim = 16 * rng.randrange(1, 1024)
        params = replace(SMALL, dim=dim, ffn_dim=rng.randrange(dim // 30 + 1, 50 * dim))
        assert numbers(written_and_read(tmp_path, params)) == params


def test_a_width_far_below_metas_rule_is_refused() -> None:
    with pytest.raises(RefusedError, match="a feed-forward width of 20 cannot be written"):
        params_json_of(replace(SMALL, dim=4096, ffn_dim=20))


@pytest.mark.parametrize(
    ("params", "keys"),
    [
        (SMALL, set()),
        (LLAMA_3, set()),
        (replace(LLAMA_3, rope_scaling=EIGHT), {"use_scaled_rope"}),
        (replace(LLAMA_3, dim=2048, n_heads=32, rope_scaling=THIRTY_TWO), {"use_scaled_rope"}),
        (replace(LLAMA_3, rope_scaling=THIRTY_TWO), {"use_scaled_rope", "rope_scaling_factor"}),
        (replace(LLAMA_3, dim=2048, n_heads=32, rope_scaling=EIGHT), {"use_scaled_rope", "rope_scaling_factor"}),
        (
            replace(SMALL, rope_scaling=RopeScaling(factor=8.0, old_context_tokens=4096)),
            {
                "use_scaled_rope",
                "rope_scaling_factor",
                "rope_low_freq_factor",
                "rope_high_freq_factor",
                "rope_old_context_tokens",
            },
        ),
    ],
)
def test_keys_of_ours_stand_only_where_metas_rule_would_give_another_scaling(
    tmp_path: Path, params: Params, keys: set[str]
) -> None:
    written = params_json_of(params)
    assert {key for key in written if key.startswith(("rope_", "use_"))} == {*keys, "rope_theta"}
    found = written_and_read(tmp_path, params)
    assert numbers(found) == params
    # The vocabulary of the files, found later, changes nothing.
    assert numbers(found.with_vocab_size(params.vocab_size)) == params


def test_every_number_survives(tmp_path: Path) -> None:
    rng = random.Random(5)
    for _ in range(100):
        low = rng.uniform(0.1, 3)
        scaling = RopeScaling(
            factor=rng.uniform(1, 64),
            low_freq_factor=low,
            high_freq_factor=low + rng.uniform(0.1, 8),
            old_context_tokens=rng.randrange(1, 2**20),
        )
        params = replace(SMALL, norm_eps=rng.uniform(1e-7, 1e-4), rope_theta=rng.uniform(1, 1e7), rope_scaling=scaling)
        assert numbers(written_and_read(tmp_path, params)) == params


BLEND = {"rope_low_freq_factor": 1.0, "rope_high_freq_factor": 4.0, "rope_old_context_tokens": 4096}


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (BLEND, "rope_low_freq_factor is given without rope_theta, rope_scaling_factor, use_scaled_rope"),
        (
            {"rope_old_context_tokens": 4096, "use_scaled_rope": False, "rope_theta": 1e4, "rope_scaling_factor": 8},
            "rope_old_context_tokens is given without use_scaled_rope; give all of them, or none",
        ),
        (
            {"rope_low_freq_factor": 4, "use_scaled_rope": True, "rope_theta": 1e4, "rope_scaling_factor": 8},
            "rope_low_freq_factor=4 is not below rope_high_freq_factor=4",
        ),
        ({"rope_old_context_tokens": 0}, "rope_old_context_tokens is 0; wanted a whole number of 1 to"),
    ],
)
def test_half_said_or_senseless_bounds_are_refused(tmp_path: Path, changes: dict[str, Any], says: str) -> None:
    path = tmp_path / "params.json"
    path.write_text(json.dumps({"dim": 64, "n_layers": 2, "n_heads": 8, **changes}))
    with pytest.raises(RefusedError, match=f"^{re.escape(str(path))}: {re.escape(says)}"):
        read_params(path)
