"""Rotary position embedding in Meta's layout: neighbours (2i, 2i+1) turn together (arXiv:2104.09864)."""

import math
from functools import cached_property

import torch
from torch import Tensor

from model.params import Params, RopeScaling


def rotations(params: Params, max_tokens: int, device: torch.device | str = "cpu") -> Tensor:
    """The turns of each position as unit complex numbers, [max_tokens, head_dim / 2], complex64."""
    half = torch.arange(0, params.head_dim, 2, dtype=torch.float32, device=device)
    frequencies = 1.0 / params.rope_theta ** (half / params.head_dim)
    if params.rope_scaling is not None:
        frequencies = _scaled(frequencies, params.rope_scaling)
    positions = torch.arange(max_tokens, dtype=torch.float32, device=device)
    angles = torch.outer(positions, frequencies)
    return torch.polar(torch.ones_like(angles), angles)


class Turns:
    """The rotary table, and where in it the tokens of a pass stand (its first rows, where nothing is said)."""

    def __init__(self, table_Sh: Tensor, positions_BT: Tensor) -> None:
        self.table_Sh = table_Sh
        self.positions_BT = positions_BT

    @cached_property
    def here_BTh(self) -> Tensor:
        """The turns of the pass's tokens; a row of tokens may serve all rows of the batch."""
        return self.table_Sh[self.positions_BT]


def _scaled(frequencies: Tensor, scaling: RopeScaling) -> Tensor:
    """Slow turns slowed by the factor, fast ones kept, those between blended (llama-models, apply_scaling)."""
    wavelength = 2 * math.pi / frequencies
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    blend = ((scaling.old_context_tokens / wavelength - low) / (high - low)).clamp(0, 1)
    return (1 - blend) * frequencies / scaling.factor + blend * frequencies


def rotate(x: Tensor, turns: Tensor) -> Tensor:
    """x [B, T, heads, head_dim] turned by `turns` [B or 1, T, head_dim / 2]; in float32 inside, x's dtype out."""
    pairs = torch.view_as_complex(x.float().view(*x.shape[:-1], -1, 2))
    return torch.view_as_real(pairs * turns.unsqueeze(2)).flatten(-2).type_as(x)
