"""The Triton kernels as functions of tensors, and when they can be used. Each is what its namesake in `native.py` is.

Triton is imported at the first call: it is heavy, and optional, and on a CPU nobody needs it.
"""

import logging
from collections.abc import Sequence
from functools import cache
from importlib.util import find_spec

import torch
from torch import Tensor

from parallel.kernels.gradients import wanted
from parallel.kernels.quantised import QuantisedWeight, Weight

log = logging.getLogger("shardrun")

# Rows of a step: more are a prefill's, which torch's kernels do better.
_MOST_ROWS = 256
# Above so many rows torch's products are better; quantised weights it would have to write out first.
_MOST_PRODUCT_ROWS, _MOST_QUANTISED_ROWS = 8, 64
_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def usable(x: Tensor, rows: int) -> bool:
    """Whether these kernels can work on `x`, seen as so many rows of a step: on a GPU, without a gradient."""
    return rows <= _MOST_ROWS and x.is_cuda and x.dtype in _DTYPES and not wanted(x) and _installed(x.device)


def multiplies(x: Tensor, rows: int, weights: Sequence[Weight]) -> bool:
    """Whether `products` is the way to multiply so many rows with these weights."""
    quantised = isinstance(weights[0], QuantisedWeight)
    return rows <= (_MOST_QUANTISED_ROWS if quantised else _MOST_PRODUCT_ROWS) and usable(x, rows)


@cache
def _installed(device: torch.device) -> bool:
    """Whether Triton can be had for this GPU; what is missing is said once in the log."""
    if find_spec("triton") is None:
        log.warning("note: decoding runs on torch's kernels, more slowly: the package triton is not installed")
        return False
    # Older ones have no bfloat16.
    return torch.cuda.get_device_capability(device) >= (8, 0)


def products(x: Tensor, weights: Sequence[Weight], gated: bool = False) -> Tensor:
    """See native.products. Where `multiplies`."""
    from parallel.kernels import triton_products

    return triton_products.products(x, weights, gated)


def add_norm(x: Tensor, more: Tensor | None, weight: Tensor, eps: float) -> Tensor:
    """See native.add_norm. Where `usable`."""
    from parallel.kernels import triton_steps

    return triton_steps.add_norm(x, more, weight, eps)


def attend(
    qkv_BX: Tensor,
    keys_BkSH: Tensor,
    values_BkSH: Tensor,
    turns_Sh2: Tensor,
    places_B: Tensor,
    queries: tuple[int, ...],
) -> Tensor:
    """See attention.attend_step. Where `usable`."""
    from parallel.kernels import triton_steps

    counts = triton_steps.queries_on(qkv_BX.device, queries)
    return triton_steps.attend(qkv_BX, keys_BkSH, values_BkSH, turns_Sh2, places_B, counts)
