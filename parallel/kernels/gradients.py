"""Whether somebody wants a gradient: then torch's operations do the work, which remember what they did."""

import torch
from torch import Tensor, nn


def wanted(*inputs: Tensor | nn.Module | None) -> bool:
    """Whether a gradient of any of these is wanted. Quantised weights, which are modules, have none."""
    return torch.is_grad_enabled() and any(isinstance(one, Tensor) and one.requires_grad for one in inputs)
