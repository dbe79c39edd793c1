"""Linear layers cut over the ranks of a mesh.

Drop-in for fairscale 0.4.13's `fairscale.nn.model_parallel.layers`: the same constructor arguments and
the same forward, read from the same group registry; `mesh` is ours. The constructor takes the full
sizes and holds this rank's share, so a model file reads as if nothing were cut.

Both follow Megatron-LM (arXiv:1909.08053, section 3). Constructors talk to nobody; forward and
backward are collective.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn import init

from parallel.collectives import copy_to_ranks, gather_from_ranks, reduce_from_ranks, scatter_to_ranks
from parallel.initial import InitMethod, new_weight
from parallel.mesh import Mesh, current_mesh
from parallel.slices import strided_shares


class ColumnParallelLinear(nn.Module):
    """y = x W^T + b with W [out, in] cut along out: x [..., in] whole, y cut, or gathered to [..., out].

    `weight` is [out / size, in], `bias` [out / size].
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        gather_output: bool = True,
        init_method: InitMethod = init.xavier_normal_,
        stride: int = 1,
        keep_master_weight_for_test: bool = False,
        *,
        mesh: Mesh | None = None,
    ) -> None:
        super().__init__()
        self.mesh = mesh or current_mesh()
        self.in_features = in_features
        self.out_features = out_features
        self.gather_output = gather_output
        owned = strided_shares(out_features, self.mesh.rank, self.mesh.size, stride, "output features")
        self.output_size_per_partition = out_features // self.mesh.size
        self.weight, master = new_weight((out_features, in_features), 0, owned, init_method)
        self.master_weight = master if keep_master_weight_for_test else None
        self.bias = nn.Parameter(torch.zeros(self.output_size_per_partition)) if bias else None

    def get_master_weight(self) -> Tensor:
        """The full weight [out, in], gathered from every rank. Collective."""
        return gather_from_ranks(self.weight.data.transpose(0, 1), self.mesh).transpose(0, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = F.linear(copy_to_ranks(x, self.mesh), self.weight, self.bias)
        return gather_from_ranks(y, self.mesh) if self.gather_output else y


class RowParallelLinear(nn.Module):
    """y = x W^T + b with W [out, in] cut along in: x cut (or whole, and then cut here), y [..., out] whole.

    `weight` is [out, in / size]; `bias` [out] is whole on every rank and added once, after the sum.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        input_is_parallel: bool = False,
        init_method: InitMethod = init.xavier_normal_,
        stride: int = 1,
        keep_master_weight_for_test: bool = False,
        *,
        mesh: Mesh | None = None,
    ) -> None:
        super().__init__()
        self.mesh = mesh or current_mesh()
        self.in_features = in_features
        self.out_features = out_features
        self.input_is_parallel = input_is_parallel
        owned = strided_shares(in_features, self.mesh.rank, self.mesh.size, stride, "input features")
        self.input_size_per_partition = in_features // self.mesh.size
        self.weight, master = new_weight((out_features, in_features), 1, owned, init_method)
        self.master_weight = master if keep_master_weight_for_test else None
        self.bias = nn.Parameter(torch.zeros(out_features)) if bias else None

    def get_master_weight(self) -> Tensor:
        """The full weight [out, in], gathered from every rank. Collective."""
        return gather_from_ranks(self.weight.data, self.mesh)

    def forward(self, x: Tensor) -> Tensor:
        own = x if self.input_is_parallel else scatter_to_ranks(x, self.mesh)
        y = reduce_from_ranks(F.linear(own, self.weight), self.mesh)
        return y if self.bias is None else y + self.bias
