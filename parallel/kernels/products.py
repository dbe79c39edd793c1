"""Products of rows with weights, plain or quantised."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from parallel.kernels import gpu, native
from parallel.kernels.adjacent import joined
from parallel.kernels.gradients import wanted
from parallel.kernels.quantised import QuantisedWeight, Weight


def products(x: Tensor, weights: Sequence[Weight]) -> Tensor:
    """x [..., in] with each weight [out, in], side by side: [..., sum of out]. Needs no communication."""
    rows, readable = x.numel() // x.shape[-1], native.readable(weights, x.dtype)
    if readable and native.usable(x, rows):
        return native.products(x, weights)
    if readable and gpu.multiplies(x, rows, weights):
        return gpu.products(x, weights)
    if (packed := _packed(x, weights)) is not None:
        return F.linear(x, packed)
    found = [F.linear(x, plain(weight, x.dtype)) for weight in weights]
    return found[0] if len(found) == 1 else torch.cat(found, -1)


def gated_products(x: Tensor, gate: Weight, up: Weight) -> Tensor:
    """silu(x gate^T) * (x up^T), [..., in] to [..., out] (SwiGLU, arXiv:2002.05202)."""
    weights = (gate, up)
    rows, readable = x.numel() // x.shape[-1], native.readable(weights, x.dtype)
    if readable and native.usable(x, rows):
        return native.products(x, weights, gated=True)
    if readable and gpu.multiplies(x, rows, weights):
        return gpu.products(x, weights, gated=True)
    return F.silu(F.linear(x, plain(gate, x.dtype))) * F.linear(x, plain(up, x.dtype))


def _packed(x: Tensor, weights: Sequence[Weight]) -> Tensor | None:
    """The weights as one, where they stand behind one another and nobody wants the gradient of each."""
    plain_ones = [weight for weight in weights if isinstance(weight, Tensor)]
    return joined(plain_ones) if x.is_cuda and len(plain_ones) == len(weights) > 1 and not wanted(*weights) else None


def plain(weight: Weight, dtype: torch.dtype) -> Tensor:
    """The weight as torch multiplies with it; a quantised one is written out, for this one use."""
    if not isinstance(weight, QuantisedWeight):
        return weight
    return native.write_out(weight, dtype) if native.can_write_out(weight, dtype) else weight.dequantised(dtype)
