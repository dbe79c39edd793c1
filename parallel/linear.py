"""Linear layers cut over the ranks of a mesh.

Drop-in for fairscale 0.4.13's `fairscale.nn.model_parallel.layers`: the same constructor arguments and
the same forward, read from the same group registry; `mesh` and `shares` are ours. The constructor takes
the full sizes and holds this rank's share, so a model file reads as if nothing were cut.

`shares`: what each rank owns of the dimension that is cut, where that is not the same for all. Without it
a size that does not go evenly is refused, as in fairscale.

Both follow Megatron-LM (arXiv:1909.08053, section 3). Constructors talk to nobody; forward and
backward are collective.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import init

from parallel.collectives import Shares, copy_to_ranks, gather_from_ranks, reduce_from_ranks, scatter_to_ranks
from parallel.initial import InitMethod, new_weight
from parallel.kernels.products import gated_products, plain, products
from parallel.kernels.quantised import Weight
from parallel.mesh import Mesh, current_mesh
from parallel.slices import Slice, strided_shares


def _owned(shares: Shares, size: int, mesh: Mesh, stride: int, what: str) -> list[Slice]:
    """The parts of a dimension of `size` that this rank owns."""
    if shares is None:
        return strided_shares(size, mesh.rank, mesh.size, stride, what)
    assert stride == 1, "uneven shares of fused weights are not dealt out here"
    return [shares[mesh.rank]]


class ColumnParallelLinear(nn.Module):
    """y = x W^T + b with W [out, in] cut along out: x [..., in] whole, y cut, or gathered to [..., out].

    `weight` is [out / size, in], `bias` [out / size]. Shares that overlap (KV heads that stand on several
    ranks) cannot be gathered.
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
        shares: Shares = None,
    ) -> None:
        super().__init__()
        self.mesh = mesh or current_mesh()
        self.in_features = in_features
        self.out_features = out_features
        self.gather_output = gather_output
        self.shares = shares
        owned = _owned(shares, out_features, self.mesh, stride, "output features")
        self.output_size_per_partition = sum(own.size for own in owned)
        self.weight: Weight
        self.weight, master = new_weight((out_features, in_features), 0, owned, init_method)
        self.master_weight = master if keep_master_weight_for_test else None
        self.bias = nn.Parameter(torch.zeros(self.output_size_per_partition)) if bias else None

    def get_master_weight(self) -> Tensor:
        """The full weight [out, in], gathered from every rank. Collective."""
        return gather_from_ranks(
            plain(self.weight, torch.float32).detach().transpose(0, 1), self.mesh, self.shares
        ).transpose(0, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = products(copy_to_ranks(x, self.mesh), (self.weight,))
        y = y if self.bias is None else y + self.bias
        return gather_from_ranks(y, self.mesh, self.shares) if self.gather_output else y


def column_products(x: Tensor, layers: Sequence[ColumnParallelLinear]) -> Tensor:
    """This rank's outputs of several layers without bias that see the same x, side by side on the last dimension: one
    pass over their weights. Only the backward is collective."""
    return products(copy_to_ranks(x, layers[0].mesh), [layer.weight for layer in layers])


def column_gated(x: Tensor, gate: ColumnParallelLinear, up: ColumnParallelLinear) -> Tensor:
    """This rank's share of silu(gate(x)) * up(x), layers without bias. Only the backward is collective."""
    return gated_products(copy_to_ranks(x, gate.mesh), gate.weight, up.weight)


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
        shares: Shares = None,
    ) -> None:
        super().__init__()
        self.mesh = mesh or current_mesh()
        self.in_features = in_features
        self.out_features = out_features
        self.input_is_parallel = input_is_parallel
        self.shares = shares
        owned = _owned(shares, in_features, self.mesh, stride, "input features")
        self.input_size_per_partition = sum(own.size for own in owned)
        self.weight: Weight
        self.weight, master = new_weight((out_features, in_features), 1, owned, init_method)
        self.master_weight = master if keep_master_weight_for_test else None
        self.bias = nn.Parameter(torch.zeros(out_features)) if bias else None

    def get_master_weight(self) -> Tensor:
        """The full weight [out, in], gathered from every rank. Collective."""
        return gather_from_ranks(plain(self.weight, torch.float32).detach(), self.mesh, self.shares)

    def forward(self, x: Tensor) -> Tensor:
        own = x if self.input_is_parallel else scatter_to_ranks(x, self.mesh, self.shares)
        y = reduce_from_ranks(products(own, (self.weight,)), self.mesh)
        return y if self.bias is None else y + self.bias
