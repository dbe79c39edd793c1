"""SwiGLU feed-forward (arXiv:2002.05202), its width F cut over the ranks (f: its share)."""

from torch import Tensor, nn

from model.params import Params
from model.split import split_of
from parallel import ColumnParallelLinear, Mesh, RowParallelLinear
from parallel.linear import column_gated


class FeedForward(nn.Module):
    """w2(silu(w1 x) * w3 x). Forward is collective (w2's all-reduce)."""

    def __init__(self, params: Params, mesh: Mesh) -> None:
        super().__init__()
        dim, ffn, shares = params.dim, params.ffn_dim, split_of(params, mesh.size).ffn
        self.w1 = ColumnParallelLinear(dim, ffn, bias=False, gather_output=False, mesh=mesh, shares=shares)
        self.w3 = ColumnParallelLinear(dim, ffn, bias=False, gather_output=False, mesh=mesh, shares=shares)
        self.w2 = RowParallelLinear(ffn, dim, bias=False, input_is_parallel=True, mesh=mesh, shares=shares)

    def forward(self, x_BTD: Tensor) -> Tensor:
        return self.w2(column_gated(x_BTD, self.w1, self.w3))  # type: ignore[no-any-return]
