"""Root-mean-square normalisation (arXiv:1910.07467)."""

import torch
from torch import Tensor, nn

from parallel.kernels.norm import add_norm


class RMSNorm(nn.Module):
    """x / rms(x) * weight over the last dimension; computed in float32 inside, returned in x's dtype."""

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor, more: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """x + more, and that normalised. Without autograd `x` may be overwritten."""
        return add_norm(x, more, self.weight, self.eps)
