"""SwiGLU feed-forward (arXiv:2002.05202), its width F cut over the ranks (f = F / size)."""

import torch.nn.functional as F
from torch import Tensor, nn

from model.params import Params
from parallel import ColumnParallelLinear, Mesh, RowParallelLinear


class FeedForward(nn.Module):
    """w2(silu(w1 x) * w3 x). Forward is collective (w2's all-reduce)."""

    def __init__(self, params: Params, mesh: Mesh) -> None:
        super().__init__()
        self.w1 = ColumnParallelLinear(params.dim, params.ffn_dim, bias=False, gather_output=False, mesh=mesh)
        self.w3 = ColumnParallelLinear(params.dim, params.ffn_dim, bias=False, gather_output=False, mesh=mesh)
        self.w2 = RowParallelLinear(params.ffn_dim, params.dim, bias=False, input_is_parallel=True, mesh=mesh)

    def forward(self, x_BTD: Tensor) -> Tensor:
        gated_BTf = F.silu(self.w1(x_BTD)) * self.w3(x_BTD)
        return self.w2(gated_BTf)  # type: ignore[no-any-return]
