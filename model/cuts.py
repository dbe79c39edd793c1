"""How each weight of a Llama is cut: the one table of names, shapes and cut dimensions.

Whoever builds, loads, checks or writes shards reads it. Read off the published files (and fairscale's
layers in llama `model.py`).
"""

from dataclasses import dataclass

from model.params import Params
from model.split import Split
from parallel.slices import Slice

# Stand in Llama 1 and 2 shards, and can be computed from params.json.
IGNORED_KEYS = frozenset({"rope.freqs"})


@dataclass(frozen=True, slots=True)
class Weight:
    """A weight of the uncut model. `cut` is the dimension it is cut along, None where every rank holds it
    whole; `axis` names the part of Split that is dealt out along it, in units of `unit` numbers."""

    name: str
    shape: tuple[int, ...]
    cut: int | None
    axis: str = ""
    unit: int = 1

    @property
    def length(self) -> int:
        """Numbers along the dimension it is cut along (the first, where it is whole)."""
        return self.shape[self.cut or 0]

    def slices(self, split: Split) -> tuple[Slice, ...]:
        """What each rank owns along `cut`; everything, where the weight is not cut."""
        if self.cut is None:
            return (Slice(0, self.length),) * split.mp
        owned: tuple[Slice, ...] = getattr(split, self.axis)
        return tuple(own * self.unit for own in owned)

    def shape_of(self, own: Slice) -> tuple[int, ...]:
        """The shape of the part `own` along `cut`."""
        place = self.cut or 0
        return (*self.shape[:place], own.size, *self.shape[place + 1 :])


def all_weights(params: Params, embedding_dim: int) -> list[Weight]:
    """Every weight, in the order of Meta's files. `embedding_dim`: 0 or 1, how tok_embeddings is cut."""
    dim, ffn, vocabulary, head_dim = params.dim, params.ffn_dim, params.vocab_size, params.head_dim
    kv_dim = params.n_kv_heads * head_dim
    heads, kv_heads = ("heads", head_dim), ("kv_heads", head_dim)
    embedding = "vocabulary" if embedding_dim == 0 else "width"
    weights = [Weight("tok_embeddings.weight", (vocabulary, dim), embedding_dim, embedding)]
    for layer in range(params.n_layers):
        prefix = f"layers.{layer}"
        weights += [
            Weight(f"{prefix}.attention.wq.weight", (dim, dim), 0, *heads),
            Weight(f"{prefix}.attention.wk.weight", (kv_dim, dim), 0, *kv_heads),
            Weight(f"{prefix}.attention.wv.weight", (kv_dim, dim), 0, *kv_heads),
            Weight(f"{prefix}.attention.wo.weight", (dim, dim), 1, *heads),
            Weight(f"{prefix}.feed_forward.w1.weight", (ffn, dim), 0, "ffn"),
            Weight(f"{prefix}.feed_forward.w2.weight", (dim, ffn), 1, "ffn"),
            Weight(f"{prefix}.feed_forward.w3.weight", (ffn, dim), 0, "ffn"),
            Weight(f"{prefix}.attention_norm.weight", (dim,), None),
            Weight(f"{prefix}.ffn_norm.weight", (dim,), None),
        ]
    weights.append(Weight("norm.weight", (dim,), None))
    weights.append(Weight("output.weight", (vocabulary, dim), 0, "vocabulary"))
    return weights
