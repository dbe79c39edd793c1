"""The table of names and cuts against Meta's files and fairscale's layers."""

from pathlib import Path

import pytest
import torch
from fairscale.nn.model_parallel.utils import VocabUtility, split_tensor_along_last_dim
from torch import Tensor

from model.cuts import Weight, all_weights
from model.params import Params
from model.split import split_of
from tests.unit.model.test_params import MODELS, read

# Meta's files (llama and llama3 `model.py`): the dimension along which shards are put together.
META_CUTS = {
    "attention.wq": 0,
    "attention.wk": 0,
    "attention.wv": 0,
    "attention.wo": 1,
    "feed_forward.w1": 0,
    "feed_forward.w2": 1,
    "feed_forward.w3": 0,
    "attention_norm": None,
    "ffn_norm": None,
}
# MODELS.md, "even MP" and "+rep", of the powers of two.
EVEN_MP = {
    "Llama 1 7B": [1, 2, 4, 8, 16, 32],
    "Llama 1 13B": [1, 2, 4, 8],
    "Llama 1 30B": [1, 2, 4],
    "Llama 1 65B": [1, 2, 4, 8, 16, 32, 64],
    "Llama 2 7B": [1, 2, 4, 8, 16, 32],
    "Code Llama 7B": [1, 2, 4, 8, 16],
    "Llama 3.1 405B MP16": [1, 2, 4, 8, 16],
}
MP_THAT_REPEATS_KV_HEADS = {
    "Llama 2 70B": [16, 32, 64],
    "Code Llama 34B": [16, 32, 64],
    "Code Llama 70B": [16],
    "Llama 3 8B": [16, 32],
    "Llama 3 70B": [16, 32, 64],
    "Llama 3.1 405B MP8": [16, 32, 64],
    "Llama 3.1 405B MP16": [32, 64],
    "Llama 3.2 1B": [16, 32],
}


@pytest.fixture
def grouped(tmp_path: Path) -> Params:
    """8 query and 4 KV heads; every size divides by 1, 2 and 4."""
    return read(tmp_path, dim=64, n_layers=2, n_heads=8, n_kv_heads=4, vocab_size=32, multiple_of=8)


def whole_numbers(weight: Weight) -> Tensor:
    return torch.arange(torch.Size(weight.shape).numel()).view(weight.shape)


def shares_of(params: Params, weight: Weight, x: Tensor, mp: int) -> list[Tensor]:
    owned = weight.slices(split_of(params, mp))
    assert len(owned) == mp
    return [x.narrow(weight.cut or 0, own.start, own.size) for own in owned]


@pytest.mark.parametrize("embedding_dim", [0, 1])
def test_names_order_and_cuts_are_those_of_metas_files(grouped: Params, embedding_dim: int) -> None:
    expected = [("tok_embeddings.weight", embedding_dim)]
    for layer in range(2):
        expected += [(f"layers.{layer}.{name}.weight", cut) for name, cut in META_CUTS.items()]
    expected += [("norm.weight", None), ("output.weight", 0)]
    assert [(weight.name, weight.cut) for weight in all_weights(grouped, embedding_dim)] == expected


def test_shapes_are_out_by_in(grouped: Params) -> None:
    shapes = {weight.name.removeprefix("layers.0."): weight.shape for weight in all_weights(grouped, 1)}
    assert shapes["attention.wq.weight"] == shapes["attention.wo.weight"] == (64, 64)
    assert shapes["attention.wk.weight"] == shapes["attention.wv.weight"] == (32, 64)
    assert shapes["feed_forward.w1.weight"] == shapes["feed_forward.w3.weight"] == (176, 64)
    assert shapes["feed_forward.w2.weight"] == (64, 176)
    assert shapes["tok_embeddings.weight"] == shapes["output.weight"] == (32, 64)
    assert shapes["norm.weight"] == (64,)
    assert sum(torch.Size(weight.shape).numel() for weight in all_weights(grouped, 1)) == grouped.n_parameters


@pytest.mark.parametrize("mp", [1, 2, 3, 4])
@pytest.mark.parametrize("embedding_dim", [0, 1])
def test_every_weight_put_together_from_its_shares_is_the_weight(grouped: Params, embedding_dim: int, mp: int) -> None:
    for weight in all_weights(grouped, embedding_dim):
        x = whole_numbers(weight)
        shares = shares_of(grouped, weight, x, mp)
        owned = weight.slices(split_of(grouped, mp))
        assert [tuple(share.shape) for share in shares] == [weight.shape_of(own) for own in owned]
        if mp != 3:
            assert len({share.shape for share in shares}) == 1
        if weight.cut is None:
            assert all(torch.equal(share, x) for share in shares)
        else:
            assert torch.equal(torch.cat(shares, weight.cut), x)


@pytest.mark.parametrize("mp", [2, 4])
@pytest.mark.parametrize("embedding_dim", [0, 1])
def test_every_share_is_the_one_that_fairscale_gives_the_rank(grouped: Params, embedding_dim: int, mp: int) -> None:
    for weight in all_weights(grouped, embedding_dim):
        if weight.cut is None:
            continue
        x = whole_numbers(weight)
        if weight.cut == 0:
            ranges = [VocabUtility.vocab_range_from_global_vocab_size(len(x), rank, mp) for rank in range(mp)]
            theirs = [x[start:stop] for start, stop in ranges]
        else:
            theirs = list(split_tensor_along_last_dim(x, mp))
        ours = shares_of(grouped, weight, x, mp)
        assert all(torch.equal(our, their) for our, their in zip(ours, theirs, strict=True))


def heads_of(params: Params, name: str, mp: int) -> list[tuple[int, int]]:
    """The first head of a weight on each rank and the one behind its last, of 8 numbers a head."""
    weight = next(weight for weight in all_weights(params, 1) if weight.name == f"layers.0.attention.{name}.weight")
    owned = weight.slices(split_of(params, mp))
    assert all(own.start % 8 == own.stop % 8 == 0 for own in owned)
    return [(own.start // 8, own.stop // 8) for own in owned]


def test_a_ranks_queries_keys_and_values_are_of_the_same_whole_heads(grouped: Params) -> None:
    # Two query heads to a KV head.
    assert heads_of(grouped, "wq", 4) == heads_of(grouped, "wo", 4) == [(0, 2), (2, 4), (4, 6), (6, 8)]
    assert heads_of(grouped, "wk", 4) == heads_of(grouped, "wv", 4) == [(0, 1), (1, 2), (2, 3), (3, 4)]
    # Where it does not go evenly, queries stay with the KV head that they use.
    assert heads_of(grouped, "wq", 3) == heads_of(grouped, "wo", 3) == [(0, 4), (4, 6), (6, 8)]
    assert heads_of(grouped, "wk", 3) == heads_of(grouped, "wv", 3) == [(0, 2), (2, 3), (3, 4)]


def test_heads_are_never_cut_through_even_where_the_columns_would_divide(grouped: Params) -> None:
    # 4 KV heads of 8 numbers would divide into 8 halves; each stands whole on two ranks instead.
    assert heads_of(grouped, "wq", 8) == heads_of(grouped, "wo", 8) == [(head, head + 1) for head in range(8)]
    twice = [(0, 1), (0, 1), (1, 2), (1, 2), (2, 3), (2, 3), (3, 4), (3, 4)]
    assert heads_of(grouped, "wk", 8) == heads_of(grouped, "wv", 8) == twice


@pytest.mark.parametrize(("name", "raw"), [row[:2] for row in MODELS], ids=[row[0] for row in MODELS])
def test_each_published_model_divides_over_the_mp_sizes_of_its_row(
    tmp_path: Path, name: str, raw: dict[str, object]
) -> None:
    params = read(tmp_path, **{**raw, "n_layers": 1})
    # Llama 3 and later cut the embedding along the vocabulary.
    weights = all_weights(params, 0 if params.vocab_size == 128256 else 1)
    once, repeated = [], []
    for mp in (1, 2, 4, 8, 16, 32, 64):
        if mp > params.n_heads:
            continue
        split = split_of(params, mp)
        even = all(len({own.size for own in weight.slices(split)}) == 1 for weight in weights)
        assert split.meta == even
        if even and mp <= params.n_kv_heads:
            assert split.kv_copies == 1
            once.append(mp)
        elif even:
            assert split.kv_copies == mp // params.n_kv_heads
            repeated.append(mp)
    assert once == EVEN_MP.get(name, [1, 2, 4, 8])
    assert repeated == MP_THAT_REPEATS_KV_HEADS.get(name, [])
