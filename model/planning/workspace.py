"""How much memory the temporaries of a forward pass take at their worst moment. Arithmetic only; no torch.

A model of `transformer.py`, `attention.py`, `feedforward.py`, `rope.py`, `collectives.py` and `generation/sampling.py`
as they are written: it adds up the tensors that are alive together at each stage of a pass and takes the largest sum.
With torch 2.13 the live bytes that its profiler sees in a prefill agree within 1 %. Names as in attention.py:
n query heads, k KV heads, f feed-forward columns, v vocabulary entries of this rank; D, V the full sizes.
"""

from dataclasses import dataclass

from model.generation.settings import prefill_tokens
from model.params import Params
from model.split import Split

# On a CPU glibc takes blocks of up to 32 MiB from its heap, which freed blocks of other sizes leave full of holes.
# What a process holds besides the live bytes, as a part of them, differs from run to run: 0.1 to 1.4 of them where
# the rank is alone, and 0.5 to 1.8 among several, whose blocks are of more sizes. In the middle, measured:
_HEAP_BLOCK_BYTES = 32 * 2**20
_HOLES_ALONE = 0.7
_HOLES = 1.2
_LEAST_HOLES = 0.15
# process and draw, with temperature and top_p: logits, scores, probabilities, and the double sums besides, all [B, V].
_SAMPLING_BYTES = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Pass:
    """The shape of a forward pass: `batch` rows of `new` tokens each, behind `seen` - `new` tokens of before."""

    batch: int
    new: int
    seen: int

    @property
    def rows(self) -> int:
        return self.batch * self.new


@dataclass(frozen=True, slots=True, kw_only=True)
class Widths:
    """What decides the size of a rank's temporaries."""

    dim: int
    head_dim: int
    n: int
    k: int
    f: int
    v: int
    vocabulary: int
    # The largest share of the vocabulary: narrower ones are filled up to it when logits are gathered.
    widest_v: int
    # Columns of the embedding that this rank has; 0 where it is cut along the vocabulary.
    columns: int
    ranks: int
    # Queries differ from KV head to KV head, so that keys and values are written out for each query.
    ragged: bool
    # Chooses the tokens.
    first: bool
    itemsize: int


def widths_of(params: Params, split: Split, embedding_dim: int, itemsize: int) -> tuple[Widths, ...]:
    """Each rank's."""
    widest_v = max(own.size for own in split.vocabulary)
    return tuple(
        Widths(
            dim=params.dim,
            head_dim=params.head_dim,
            n=split.heads[rank].size,
            k=split.kv_heads[rank].size,
            f=split.ffn[rank].size,
            v=split.vocabulary[rank].size,
            vocabulary=params.vocab_size,
            widest_v=widest_v,
            columns=split.width[rank].size if embedding_dim == 1 else 0,
            ranks=split.mp,
            ragged=len(set(split.queries[rank])) > 1,
            first=rank == 0,
            itemsize=itemsize,
        )
        for rank in range(split.mp)
    )


def prefill_bytes(widths: Widths, batch: int, tokens: int, max_tokens: int) -> int:
    """Peak of a prefill of `tokens` tokens in each row; `max_tokens`: positions that the rotary table has."""
    step = Pass(batch=batch, new=min(tokens, prefill_tokens(batch)), seen=tokens)
    table = 4 * widths.head_dim * max_tokens
    shared = 8 * step.rows + step.new * (4 * widths.head_dim + 8)
    if step.new < tokens:
        # The hidden states of all parts, and what the last part sees: as truths, and as numbers to be added.
        shared += batch * tokens * widths.dim * widths.itemsize + step.new * tokens * (1 + widths.itemsize)
    hidden = widths.dim * widths.itemsize * step.rows
    return table + max(table, shared + _layers(widths, step), hidden + _head(widths, batch), _choice(widths, batch))


def decode_bytes(widths: Widths, batch: int, max_tokens: int) -> int:
    """Peak of decoding one token in each row, the rows of different lengths, with `max_tokens` seen."""
    step = Pass(batch=batch, new=1, seen=max_tokens)
    table = 4 * widths.head_dim * max_tokens
    mask = step.batch * step.seen * (1 + widths.itemsize)
    shared = step.rows * (4 * widths.head_dim + 24) + mask
    before = 4 * widths.vocabulary * batch
    passing = before + shared + max(_layers(widths, step), _head(widths, batch))
    return table + max(passing, _choice(widths, batch))


def resident_bytes(live_bytes: int, widths: Widths, rows: int) -> int:
    """What a process on a CPU holds for temporaries of `live_bytes` in a pass over `rows` tokens in all."""
    block = rows * widths.dim * widths.itemsize
    holes = (_HOLES_ALONE if widths.ranks == 1 else _HOLES) * min(1, _HEAP_BLOCK_BYTES / block)
    return int(live_bytes * (1 + max(_LEAST_HOLES, holes)))


def _layers(w: Widths, step: Pass) -> int:
    """Embedding and layers: the worst moment."""
    size, hidden = w.itemsize, w.dim * w.itemsize
    heads, kv_heads = w.n * w.head_dim, w.k * w.head_dim
    # F.rms_norm in float32: its result, and one float32 copy or two.
    normed = w.dim * (8 if size == 4 else 12)
    # rope.rotate in complex64: what comes in, in float32, turned, and what goes out.
    turned = 8 if size == 4 else 2 * size + 8
    qkv = (heads + 2 * kv_heads) * size
    moments = (
        _embedding(w),
        2 * hidden + normed,
        2 * hidden + max(heads * turned, heads * size + kv_heads * turned),
        2 * hidden + qkv + heads * size + 4 * w.n,
        3 * hidden + qkv + heads * size,
        2 * hidden + 3 * w.f * size,
        3 * hidden + w.f * size,
    )
    written_out = 2 * step.batch * step.seen * heads * size if w.ragged else 0
    return step.rows * max(moments) + written_out


def _embedding(w: Widths) -> int:
    """A row of the embedding, and of its gathering or summing."""
    hidden = w.dim * w.itemsize
    if w.ranks == 1:
        return hidden
    return 2 * hidden + w.columns * w.itemsize if w.columns else 2 * hidden + 17


def _head(w: Widths, batch: int) -> int:
    """From hidden states [B, D] to logits in float32 [B, V]."""
    whole = w.vocabulary * w.itemsize
    last = (0 if w.itemsize == 4 else whole) + 4 * w.vocabulary
    own = w.v * w.itemsize
    if w.ranks == 1:
        return batch * max(own, last)
    parts = w.ranks * w.widest_v * w.itemsize
    # The backend gathers into one buffer more.
    return batch * max(own + 2 * parts, parts + whole, last)


def _choice(w: Widths, batch: int) -> int:
    """Rank 0 draws, with temperature and top_p; the others hold the logits meanwhile."""
    return batch * w.vocabulary * (_SAMPLING_BYTES if w.first else 4)
