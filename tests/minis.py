"""Miniatures of each family's shape, and what a rank owns of one, worked out here alone: no code of `model/`."""

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from tests.checkpoints import SHARD, Sizes, whole_weights

# 32 bytes of bfloat16: the largest block in which a dimension is dealt out where it does not go evenly.
_BLOCK = 16


@dataclass(frozen=True, kw_only=True)
class Mini(Sizes):
    """`embedding_dim`: how tok_embeddings is cut. `even_mp`: where each cut is Meta's own.

    `stored_kv_heads`: what params.json says where each KV head stands in several files.
    """

    embedding_dim: int = 1
    even_mp: tuple[int, ...] = (1,)

    def write(self, folder: Path, mp: int, dtype: torch.dtype = torch.float32, seed: int = 7) -> Path:
        """A folder as Meta writes it, with torch.save: even cuts, KV heads repeated where there are more ranks."""
        assert mp in self.even_mp
        folder.mkdir(parents=True)
        stored = max(mp, self.n_kv_heads)
        params = {**self.params(), "n_kv_heads": stored, "vocab_size": self.vocabulary}
        (folder / "params.json").write_text(json.dumps(params))
        whole = {name: weight.to(dtype) for name, weight in whole_weights(self, seed).items()}
        for rank in range(mp):
            shard = {}
            for name, weight in whole.items():
                part = name.split(".")[-2]
                if part in ("wk", "wv") and stored > self.n_kv_heads:
                    heads = weight.unflatten(0, (self.n_kv_heads, self.head_dim))
                    weight = heads.repeat_interleave(stored // self.n_kv_heads, 0).flatten(0, 1)
                dim = cut_dim(name, self.embedding_dim)
                shard[name] = weight if dim is None else weight.chunk(mp, dim)[rank].clone()
            torch.save(shard, folder / SHARD.format(rank))
        return folder


MINIS = {
    # A head for each query (Llama 1 and 2), a vocabulary that 3, 6 and 12 do not divide.
    "12 heads": Mini(dim=96, n_heads=12, n_kv_heads=12, vocabulary=128, even_mp=(1, 2, 4)),
    # Twelve even shards, whose KV heads stand on three each; cut along the vocabulary.
    "12 heads, 4 KV heads": Mini(
        dim=96, n_heads=12, n_kv_heads=4, multiple_of=48, vocabulary=144, embedding_dim=0, even_mp=(1, 2, 4, 12)
    ),
    # As few KV heads as there are: every MP above 2 repeats them.
    "16 heads, 2 KV heads": Mini(
        dim=64, n_heads=16, n_kv_heads=2, vocabulary=96, embedding_dim=0, even_mp=(1, 2, 4, 8, 16)
    ),
    # Llama 3.1 405B: at 16 ranks, files that hold each of 8 KV heads twice.
    "16 heads, 8 KV heads": Mini(
        dim=64, n_heads=16, n_kv_heads=8, vocabulary=80, embedding_dim=0, even_mp=(1, 2, 4, 8, 16)
    ),
    # Llama 3.2 3B: three queries to a KV head, so that 12 and 16 ranks cut through the groups.
    "24 heads, 8 KV heads": Mini(
        dim=96, n_heads=24, n_kv_heads=8, vocabulary=112, embedding_dim=0, even_mp=(1, 2, 4, 8)
    ),
    # Half of Llama 1 30B's 52 heads, whose odd factor is 13.
    "26 heads": Mini(dim=104, n_heads=26, n_kv_heads=26, vocabulary=100, even_mp=(1, 2)),
}


def cut_dim(name: str, embedding_dim: int) -> int | None:
    """The dimension along which a weight is cut, None for the norms."""
    part = name.split(".")[-2]
    if part == "tok_embeddings":
        return embedding_dim
    return {"wq": 0, "wk": 0, "wv": 0, "wo": 1, "w1": 0, "w2": 1, "w3": 0, "output": 0}.get(part)


def query_heads(n_heads: int, n_kv_heads: int, rank: int, mp: int) -> Tensor:
    """The query heads of a rank: with their KV head while there is one for each rank, else dealt out singly."""
    if mp > n_kv_heads:
        return torch.arange(n_heads).tensor_split(mp)[rank]
    return torch.arange(n_heads).view(n_kv_heads, -1).tensor_split(mp)[rank].flatten()


def dealt(size: int, rank: int, mp: int) -> Tensor:
    """The numbers of a rank: an even share, else whole blocks, else single ones."""
    block = next(block for block in (_BLOCK, 8, 4, 2, 1) if size % block == 0)
    if size % mp == 0 or size // block < mp:
        return torch.arange(size).tensor_split(mp)[rank]
    return torch.arange(size).view(-1, block).tensor_split(mp)[rank].flatten()


def own_part(weights: dict[str, Tensor], sizes: Sizes, embedding_dim: int, rank: int, mp: int) -> dict[str, Tensor]:
    """What rank `rank` of `mp` owns of each of the uncut weights."""
    heads = query_heads(sizes.n_heads, sizes.n_kv_heads, rank, mp)
    kv_heads = (heads * sizes.n_kv_heads // sizes.n_heads).unique()
    inside = torch.arange(sizes.head_dim)
    query_rows, kv_rows = ((some.unsqueeze(1) * sizes.head_dim + inside).flatten() for some in (heads, kv_heads))
    rows = {"wq": query_rows, "wo": query_rows, "wk": kv_rows, "wv": kv_rows}
    found = {}
    for name, weight in weights.items():
        dim = cut_dim(name, embedding_dim)
        if dim is not None:
            part = name.split(".")[-2]
            own = rows[part] if part in rows else dealt(weight.shape[dim], rank, mp)
            weight = weight.index_select(dim, own)
        found[name] = weight
    return found
