"""Rotary embedding: neighbours turn as complex numbers do."""

import cmath
from typing import Any

import pytest
import torch
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from model.params import Params, RopeScaling
from model.rope import rotate, rotations


def params_of(head_dim: int, theta: float, scaling: RopeScaling | None = None) -> Params:
    sizes: dict[str, Any] = {"n_layers": 1, "n_heads": 2, "n_kv_heads": 2, "ffn_dim": 8, "vocab_size": 8}
    return Params(
        **sizes, dim=2 * head_dim, norm_eps=1e-5, rope_theta=theta, rope_scaling=scaling, rope_reason="by the test"
    )


def test_each_position_turns_pair_i_by_position_times_theta_to_minus_2i_over_head_dim() -> None:
    turns = rotations(params_of(16, 10000.0), 512).to(torch.complex128)
    expected = [[cmath.exp(1j * t * 10000.0 ** (-2 * i / 16)) for i in range(8)] for t in range(512)]
    # A float32 angle of up to 511 radians is known to 511 * 2^-24 = 3e-5, and the frequency adds as much.
    torch.testing.assert_close(turns, torch.tensor(expected, dtype=torch.complex128), rtol=0, atol=1e-4)
    assert torch.equal(turns[0], torch.ones(8, dtype=torch.complex128))


def test_neighbours_turn_together_as_a_complex_product_in_float64() -> None:
    generator = torch.Generator().manual_seed(1)
    x_BTnH = torch.randn(2, 5, 3, 8, generator=generator)
    turns_BTh = rotations(params_of(8, 10000.0), 7)[torch.tensor([[0, 1, 2, 3, 4], [2, 3, 4, 5, 6]])]
    turned = rotate(x_BTnH, turns_BTh)
    for b, t, n, i in torch.cartesian_prod(*(torch.arange(size) for size in (2, 5, 3, 4))).tolist():
        pair = complex(x_BTnH[b, t, n, 2 * i].item(), x_BTnH[b, t, n, 2 * i + 1].item())
        product = pair * turns_BTh[b, t, i].item()
        # One product and one sum in float32 of numbers below 8.
        assert abs(complex(turned[b, t, n, 2 * i].item(), turned[b, t, n, 2 * i + 1].item()) - product) < 2e-6


def test_scores_depend_on_the_distance_of_two_tokens_alone() -> None:
    generator = torch.Generator().manual_seed(2)
    q, k = torch.randn(2, 1, 1, 1, 16, generator=generator)
    turns = rotations(params_of(16, 10000.0), 64)

    def score(at: int, seen: int) -> float:
        return float((rotate(q, turns[None, at : at + 1]) * rotate(k, turns[None, seen : seen + 1])).sum())

    # Angles of up to 63 radians in float32 are known to 63 * 2^-24 = 4e-6 each, times 16 products.
    assert score(13, 4) == pytest.approx(score(63, 54), abs=2e-4)
    assert abs(score(13, 4) - score(13, 5)) > 1e-2


def test_half_precision_comes_out_in_its_dtype_and_is_rounded_once() -> None:
    x = torch.randn(1, 6, 2, 8, generator=torch.Generator().manual_seed(3))
    turns = rotations(params_of(8, 500000.0), 6).unsqueeze(0)
    low = x.to(torch.bfloat16)
    assert torch.equal(rotate(low, turns), rotate(low.float(), turns).to(torch.bfloat16))


def frequencies(params: Params) -> torch.Tensor:
    """What one token turns by, read off the table: all are at most 1 radian."""
    return rotations(params, 2)[1].to(torch.complex128).angle()


@pytest.mark.parametrize(
    ("factor", "dim", "heads"),
    [(8.0, 4096, 32), (32.0, 2048, 32), (32.0, 3072, 24)],
    ids=["Llama 3.1", "Llama 3.2 1B", "Llama 3.2 3B"],
)
def test_stretched_frequencies_equal_those_of_transformers(factor: float, dim: int, heads: int) -> None:
    rope = {
        "rope_type": "llama3",
        "rope_theta": 500000.0,
        "factor": factor,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    config = LlamaConfig(
        hidden_size=dim, num_attention_heads=heads, rope_parameters=rope, max_position_embeddings=2**17
    )
    expected, attention_factor = ROPE_INIT_FUNCTIONS["llama3"](config, torch.device("cpu"))
    assert attention_factor == 1.0
    # Both are chains of about ten float32 operations.
    torch.testing.assert_close(
        frequencies(params_of(dim // heads, 500000.0, RopeScaling(factor=factor))),
        expected.double(),
        rtol=2e-6,
        atol=0,
    )


def test_stretching_slows_slow_turns_by_the_factor_keeps_fast_ones_and_blends_between() -> None:
    plain = frequencies(params_of(128, 500000.0))
    slowed = plain / frequencies(params_of(128, 500000.0, RopeScaling(factor=8.0)))
    wavelengths = 2 * torch.pi / plain
    fast, slow = wavelengths < 8192 / 4, wavelengths > 8192
    # Quotients of float32 numbers.
    torch.testing.assert_close(slowed[fast], torch.ones_like(slowed[fast]), rtol=1e-6, atol=0)
    torch.testing.assert_close(slowed[slow], torch.full_like(slowed[slow], 8.0), rtol=1e-6, atol=0)
    between = slowed[~fast & ~slow]
    assert len(between) > 2
    assert bool(((between >= 1) & (between <= 8)).all())
    assert bool((between.diff() > 0).all())
