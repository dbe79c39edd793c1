"""How each weight of a Llama is cut over the files 00..N-1 of a Meta checkpoint.

The one table of names, shapes and cut dimensions; whoever loads, checks or writes shards reads it.
Read off the published files (and fairscale's layers in llama `model.py`).
"""

from dataclasses import dataclass

from model.params import Params
from parallel.slices import Slice, even_share, share

# Stand in Llama 1 and 2 shards, and can be computed from params.json.
IGNORED_KEYS = frozenset({"rope.freqs"})


@dataclass(frozen=True, slots=True)
class Weight:
    """A weight of the uncut model. `cut` is the dimension it is cut along, None where every shard holds it
    whole; `unit` names what is dealt out, `units` how many there are."""

    name: str
    shape: tuple[int, ...]
    cut: int | None
    unit: str = ""
    units: int = 0

    def slice_of(self, rank: int, mp: int) -> Slice | None:
        """The slice along `cut` that rank `rank` of `mp` owns; None where the weight is whole."""
        if self.cut is None:
            return None
        even_share(self.units, mp, self.unit)
        return share(self.shape[self.cut], rank, mp, self.unit)

    def shape_at(self, mp: int) -> tuple[int, ...]:
        """This weight's shape in one shard of `mp`."""
        own = self.slice_of(0, mp)
        if own is None or self.cut is None:
            return self.shape
        return (*self.shape[: self.cut], own.size, *self.shape[self.cut + 1 :])


def all_weights(params: Params, embedding_dim: int) -> list[Weight]:
    """Every weight, in the order of Meta's files. `embedding_dim`: 0 or 1, how tok_embeddings is cut."""
    dim, ffn, vocabulary = params.dim, params.ffn_dim, params.vocab_size
    kv_dim = params.n_kv_heads * params.head_dim
    embedding = (vocabulary, "vocabulary entries") if embedding_dim == 0 else (dim, "embedding dimensions")
    heads, kv_heads = ("heads", params.n_heads), ("KV heads", params.n_kv_heads)
    width = ("feed-forward columns", ffn)
    weights = [Weight("tok_embeddings.weight", (vocabulary, dim), embedding_dim, embedding[1], embedding[0])]
    for layer in range(params.n_layers):
        prefix = f"layers.{layer}"
        weights += [
            Weight(f"{prefix}.attention.wq.weight", (dim, dim), 0, *heads),
            Weight(f"{prefix}.attention.wk.weight", (kv_dim, dim), 0, *kv_heads),
            Weight(f"{prefix}.attention.wv.weight", (kv_dim, dim), 0, *kv_heads),
            Weight(f"{prefix}.attention.wo.weight", (dim, dim), 1, *heads),
            Weight(f"{prefix}.feed_forward.w1.weight", (ffn, dim), 0, *width),
            Weight(f"{prefix}.feed_forward.w2.weight", (dim, ffn), 1, *width),
            Weight(f"{prefix}.feed_forward.w3.weight", (ffn, dim), 0, *width),
            Weight(f"{prefix}.attention_norm.weight", (dim,), None),
            Weight(f"{prefix}.ffn_norm.weight", (dim,), None),
        ]
    weights.append(Weight("norm.weight", (dim,), None))
    weights.append(Weight("output.weight", (vocabulary, dim), 0, "vocabulary entries", vocabulary))
    return weights
