"""Root-mean-square normalisation (arXiv:1910.07467), with the sum that goes before it in a transformer."""

import torch.nn.functional as F
from torch import Tensor

from parallel.kernels import gpu, native
from parallel.kernels.gradients import wanted


def add_norm(x: Tensor, more: Tensor | None, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """x + more (x, where there is no more), and that divided by its root mean square, times `weight`: [..., D] each.

    Computed in float32 inside. Without autograd `x` itself may be overwritten with the sum.
    """
    alike = x.is_contiguous() and (more is None or (more.is_contiguous() and more.dtype is x.dtype))
    if alike and not wanted(more) and native.readable((weight,), x.dtype):
        rows = x.numel() // x.shape[-1]
        if native.usable(x, rows):
            return x, native.add_norm(x, more, weight, eps)
        if gpu.usable(x, rows):
            return x, gpu.add_norm(x, more, weight, eps)
    x = x if more is None else add(x, more)
    return x, F.rms_norm(x, weight.shape, weight, eps)


def add(x: Tensor, more: Tensor) -> Tensor:
    """x + more. Without autograd in the memory of `x`: prefills have no room to spare."""
    return x + more if wanted(x, more) else x.add_(more)
