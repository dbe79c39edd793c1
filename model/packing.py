"""Weights that see the same x, put behind one another in memory: a step reads them in one pass.

The layers keep their names and shapes, so a state dict is what it was, and gradients work as before: each weight
becomes a view of the memory that all of its group share.
"""

from collections.abc import Sequence
from itertools import accumulate

import torch
from torch import Tensor, nn

from model.attention import Attention
from model.feedforward import FeedForward
from model.transformer import Transformer
from parallel import ColumnParallelLinear
from parallel.kernels.adjacent import joined
from parallel.kernels.quantised import QuantisedWeight, Weight


def pack(model: Transformer) -> None:
    """Pack what a model on a GPU holds, a group at a time: no more than one group is in memory twice. On a CPU
    nothing: weights stay in their files there, and the kernels read them where they are. Doing it again does nothing.
    """
    if model.device.type == "cuda":
        for group in groups_of(model):
            pack_group(group)


def groups_of(model: Transformer) -> list[list[ColumnParallelLinear]]:
    """The layers that see the same x; the exact mode's blocks have an order of their own."""
    groups = []
    for module in model.modules():
        if isinstance(module, Attention):
            groups.append([module.wq, module.wk, module.wv])
        elif isinstance(module, FeedForward):
            groups.append([module.w1, module.w3])
    return groups


def pack_group(layers: Sequence[ColumnParallelLinear]) -> None:
    """Put the weights of these layers behind one another. Weights of several kinds or dtypes stay as they are."""
    weights: list[Weight] = [layer.weight for layer in layers]
    tensors = [weight for weight in weights if isinstance(weight, Tensor)]
    if len(tensors) == len(weights):
        for layer, weight, packed in zip(layers, tensors, _packed(tensors), strict=True):
            layer.weight = nn.Parameter(packed, requires_grad=weight.requires_grad)
        return
    quantised = [weight for weight in weights if isinstance(weight, QuantisedWeight)]
    if len(quantised) == len(weights) and len(set(map(type, quantised))) == 1:
        for name in ("numbers", "scales"):
            parts = _packed([getattr(owner, name) for owner in quantised])
            for owner, part in zip(quantised, parts, strict=True):
                setattr(owner, name, nn.Parameter(part, requires_grad=False))


def _packed(tensors: Sequence[Tensor]) -> list[Tensor]:
    """The tensors [n, ...] as views of one memory; themselves, where they are that already or cannot be."""
    alike = len({(tensor.dtype, tensor.device, tensor.shape[1:]) for tensor in tensors}) == 1
    if not alike or joined(tensors) is not None:
        return list(tensors)
    together = torch.cat([tensor.detach() for tensor in tensors])
    ends = list(accumulate(map(len, tensors)))
    return [together[end - len(tensor) : end] for tensor, end in zip(tensors, ends, strict=True)]
