"""Quantised models without processes, and what their weights must be, worked out here number by number."""

import torch
from torch import Tensor

from model.checkpoint.checkpoint import Checkpoint
from model.checkpoint.loading import load_weights
from model.quantisation import format_of
from model.quantising import quantise
from model.transformer import Transformer
from parallel import Mesh, World
from parallel.environment import Environment, Placement
from parallel.kernels.formats import Quantisation

CPU = torch.device("cpu")


def load_quantised(
    checkpoint: Checkpoint, mesh: Mesh, quantize: Quantisation, dtype: torch.dtype = torch.float32
) -> Transformer:
    """This rank's share. Collective."""
    with torch.device("meta"):
        model = Transformer(checkpoint.params, mesh, 0 if checkpoint.embedding_dim == 0 else 1)
    as_stored = [weight.name for weight in checkpoint.weights if format_of(weight.name, quantize) != "none"]
    weights = load_weights(checkpoint, mesh.rank, mesh.size, dtype, CPU, as_stored=as_stored)
    model.load_state_dict(weights, strict=True, assign=True)
    model.requires_grad_(False)
    if quantize != "none":
        # Without a store no words are exchanged; numbers go over the mesh.
        placement = Placement(device="cpu", backend=None, threads=1, reason="")
        quantise(model, World(Environment(rank=mesh.rank), placement, None, mesh), quantize)
    return model.eval()


def plain_of(name: str, weight: Tensor, quantize: Quantisation) -> Tensor:
    """What a whole weight stands for once it is quantised; `name`: Meta's."""
    part = name.split(".")[-2]
    if quantize == "none" or part not in ("wq", "wk", "wv", "wo", "w1", "w2", "w3", "output"):
        return weight
    if quantize == "int8" or part == "output":
        scales = weight.abs().amax(1, keepdim=True) / 127
        return torch.round(weight / scales) * scales
    parts = []
    for group in torch.split(weight, 64, 1):
        low, high = group.amin(1, keepdim=True), group.amax(1, keepdim=True)
        step, offset = ((high - low) / 15).bfloat16().float(), low.bfloat16().float()
        parts.append(torch.round((group - offset) / step).clamp(0, 15) * step + offset)
    return torch.cat(parts, 1)
