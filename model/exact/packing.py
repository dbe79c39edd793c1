"""From a rank's slices of the weights to the blocks of the exact mode.

Names are Meta's with the number of the block behind them: `layers.0.feed_forward.w1.weight.3` is block 3 of the
whole model's, on whatever rank it stands; wk's and wv's number is that of the unit. Norms and tok_embeddings stay as
they are.
"""

import torch
from torch import Tensor

from model.cuts import all_weights
from model.exact.blocks import blocks_of
from model.params import Params
from model.split import split_of
from parallel import Mesh

# What torch's allocator on a CPU gives, and a multiple of what kernels look at.
_ALIGNMENT_BYTES = 64


def pack(weights: dict[str, Tensor], params: Params, mesh: Mesh, embedding_dim: int) -> dict[str, Tensor]:
    """The blocks of a rank's slices, under the names of the exact model. Empties `weights` on the way.

    So that no more than one weight is held twice. A block that stands in one piece where a kernel would have put
    it stays in the mapped file.
    """
    blocks, split = blocks_of(params, mesh.rank, mesh.size), split_of(params, mesh.size)
    packed: dict[str, Tensor] = {}
    for weight in all_weights(params, embedding_dim):
        local = weights.pop(weight.name)
        if weight.cut is None or weight.name == "tok_embeddings.weight":
            packed[weight.name] = local
            continue
        held = weight.slices(split)[mesh.rank]
        for number, part in blocks.parts(weight).items():
            start = part.from_start_of(held).start
            packed[f"{weight.name}.{number}"] = _alike(local.narrow(weight.cut, start, part.size))
    assert not weights, f"not packed: {sorted(weights)}"
    return packed


def _alike(part: Tensor) -> Tensor:
    """A tensor with the strides and the alignment that it has at every MP."""
    if part.is_contiguous() and part.data_ptr() % _ALIGNMENT_BYTES == 0:
        return part
    return part.clone(memory_format=torch.contiguous_format)
