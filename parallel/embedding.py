"""Embeddings cut over the ranks of a mesh: along the vocabulary (Llama 3) or along the dimension (Llama 1, 2).

Drop-in for fairscale 0.4.13's `fairscale.nn.model_parallel.layers`, but for two slips of its that we do
not repeat: it applies `padding_idx` to this rank's row numbers rather than to the vocabulary's, and
passes `scale_grad_by_freq` as `norm_type`. `max_norm` is refused where the dimension is cut, since a
rank sees only a part of each row's norm. `shares`: as in linear.py.
"""

import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn import init

from parallel.collectives import Shares, gather_from_ranks, reduce_from_ranks
from parallel.errors import RefusedError
from parallel.initial import InitMethod, new_weight
from parallel.mesh import Mesh, current_mesh
from parallel.slices import Slice, share


def _own(shares: Shares, size: int, mesh: Mesh, what: str) -> Slice:
    return share(size, mesh.rank, mesh.size, what) if shares is None else shares[mesh.rank]


class VocabParallelEmbedding(nn.Module):
    """[...] token ids to [..., dim]; `weight` is [vocabulary / size, dim]. Forward is collective (all-reduce)."""

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        padding_idx: int | None = None,
        max_norm: float | None = None,
        norm_type: float = 2.0,
        scale_grad_by_freq: bool = False,
        sparse: bool = False,
        init_method: InitMethod = init.xavier_normal_,
        *,
        mesh: Mesh | None = None,
        shares: Shares = None,
    ) -> None:
        super().__init__()
        self.mesh = mesh or current_mesh()
        self.num_embeddings = num_embeddings
        self.embedding_dim = embedding_dim
        self.padding_idx = padding_idx
        self.max_norm = max_norm
        self.norm_type = norm_type
        self.scale_grad_by_freq = scale_grad_by_freq
        self.sparse = sparse
        if padding_idx is not None and not -num_embeddings <= padding_idx < num_embeddings:
            raise RefusedError(f"padding_idx={padding_idx} is not one of {num_embeddings} vocabulary entries")
        own = _own(shares, num_embeddings, self.mesh, "vocabulary entries")
        self.vocab_start_index, self.vocab_end_index = own.start, own.stop
        self.num_embeddings_per_partition = own.size
        self.weight, _ = new_weight((num_embeddings, embedding_dim), 0, [own], init_method)

    def forward(self, ids: Tensor) -> Tensor:
        if self.mesh.alone:
            return self._rows(ids, self.padding_idx)
        elsewhere = (ids < self.vocab_start_index) | (ids >= self.vocab_end_index)
        local_ids = (ids - self.vocab_start_index).masked_fill(elsewhere, 0)
        if self.max_norm is None and not self.scale_grad_by_freq:
            rows = self._rows(local_ids, self._local_padding_idx()).masked_fill(elsewhere.unsqueeze(-1), 0)
        else:
            # These count or change the rows that are looked up, so no stand-in may be.
            own = self._rows(local_ids[~elsewhere], self._local_padding_idx())
            rows = own.new_zeros(*ids.shape, self.embedding_dim).masked_scatter(~elsewhere.unsqueeze(-1), own)
        return reduce_from_ranks(rows, self.mesh)

    def _rows(self, ids: Tensor, padding_idx: int | None) -> Tensor:
        return F.embedding(
            ids, self.weight, padding_idx, self.max_norm, self.norm_type, self.scale_grad_by_freq, self.sparse
        )

    def _local_padding_idx(self) -> int | None:
        if self.padding_idx is None:
            return None
        row = self.padding_idx % self.num_embeddings
        return row - self.vocab_start_index if self.vocab_start_index <= row < self.vocab_end_index else None


class ParallelEmbedding(nn.Module):
    """[...] token ids to [..., dim]; `weight` is [vocabulary, dim / size]. Forward is collective (all-gather)."""

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        padding_idx: int | None = None,
        max_norm: float | None = None,
        norm_type: float = 2.0,
        scale_grad_by_freq: bool = False,
        sparse: bool = False,
        init_method: InitMethod = init.xavier_normal_,
        keep_master_weight_for_test: bool = False,
        *,
        mesh: Mesh | None = None,
        shares: Shares = None,
    ) -> None:
        super().__init__()
        self.mesh = mesh or current_mesh()
        if max_norm is not None and not self.mesh.alone:
            raise RefusedError(
                f"max_norm={max_norm} cannot work in ParallelEmbedding at MP {self.mesh.size}: each rank "
                "holds a part of every row; use VocabParallelEmbedding"
            )
        self.num_embeddings = num_embeddings
        self.embedding_dim = embedding_dim
        self.padding_idx = padding_idx
        self.max_norm = max_norm
        self.norm_type = norm_type
        self.scale_grad_by_freq = scale_grad_by_freq
        self.sparse = sparse
        self.shares = shares
        own = _own(shares, embedding_dim, self.mesh, "embedding dimensions")
        self.embedding_dim_per_partition = own.size
        self.weight, master = new_weight((num_embeddings, embedding_dim), 1, [own], init_method)
        self.master_weight = master if keep_master_weight_for_test else None

    def forward(self, ids: Tensor) -> Tensor:
        columns = F.embedding(
            ids,
            self.weight,
            self.padding_idx,
            self.max_norm,
            self.norm_type,
            self.scale_grad_by_freq,
            self.sparse,
        )
        return gather_from_ranks(columns, self.mesh, self.shares)
