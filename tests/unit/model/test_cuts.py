"""The table of names and cuts against Meta's files and fairscale's layers."""

import re
from pathlib import Path

import pytest
import torch
from fairscale.nn.model_parallel.utils import VocabUtility, split_tensor_along_last_dim
from torch import Tensor

from model.cuts import Weight, all_weights
from model.params import Params
from parallel.errors import RefusedError
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
# MODELS.md, "even MP", of the powers of two.
EVEN_MP = {
    "Llama 1 7B": [1, 2, 4, 8, 16, 32],
    "Llama 1 13B": [1, 2, 4, 8],
    "Llama 1 30B": [1, 2, 4],
    "Llama 1 65B": [1, 2, 4, 8, 16, 32, 64],
    "Llama 2 7B": [1, 2, 4, 8, 16, 32],
    "Code Llama 7B": [1, 2, 4, 8, 16],
    "Llama 3.1 405B MP16": [1, 2, 4, 8, 16],
}


@pytest.fixture
def grouped(tmp_path: Path) -> Params:
    """8 query and 4 KV heads; every size divides by 1, 2 and 4."""
    return read(tmp_path, dim=64, n_layers=2, n_heads=8, n_kv_heads=4, vocab_size=32, multiple_of=8)


def whole_numbers(weight: Weight) -> Tensor:
    return torch.arange(torch.Size(weight.shape).numel()).view(weight.shape)


def split(weight: Weight, x: Tensor, mp: int) -> list[Tensor]:
    shares = []
    for rank in range(mp):
        own = weight.slice_of(rank, mp)
        shares.append(x if own is None or weight.cut is None else x.narrow(weight.cut, own.start, own.size))
    return shares


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


@pytest.mark.parametrize("mp", [1, 2, 4])
@pytest.mark.parametrize("embedding_dim", [0, 1])
def test_every_weight_put_together_from_its_shares_is_the_weight(grouped: Params, embedding_dim: int, mp: int) -> None:
    for weight in all_weights(grouped, embedding_dim):
        x = whole_numbers(weight)
        shares = split(weight, x, mp)
        assert {tuple(share.shape) for share in shares} == {weight.shape_at(mp)}
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
        assert all(torch.equal(our, their) for our, their in zip(split(weight, x, mp), theirs, strict=True))


def test_a_ranks_queries_keys_and_values_are_of_the_same_whole_heads(grouped: Params) -> None:
    weights = {weight.name: weight for weight in all_weights(grouped, 1)}
    for rank in range(4):
        query = weights["layers.0.attention.wq.weight"].slice_of(rank, 4)
        key = weights["layers.0.attention.wk.weight"].slice_of(rank, 4)
        assert query is not None and key is not None
        # 8 numbers a head; two query heads to a KV head.
        assert (query.start // 8, query.stop // 8) == (2 * rank, 2 * rank + 2)
        assert (key.start // 8, key.stop // 8) == (rank, rank + 1)


def test_heads_are_never_cut_through_even_where_the_columns_would_divide(grouped: Params) -> None:
    sentence = "cannot split 4 KV heads over 8 ranks evenly; choose an MP of 1, 2 or 4"
    with pytest.raises(RefusedError, match=re.escape(sentence)):
        next(w for w in all_weights(grouped, 1) if w.name.endswith("wk.weight")).shape_at(8)


@pytest.mark.parametrize(("name", "raw"), [row[:2] for row in MODELS], ids=[row[0] for row in MODELS])
def test_each_published_model_divides_over_the_mp_sizes_of_its_row(
    tmp_path: Path, name: str, raw: dict[str, object]
) -> None:
    params = read(tmp_path, **{**raw, "n_layers": 1})
    # Llama 3 and later cut the embedding along the vocabulary.
    weights = all_weights(params, 0 if params.vocab_size == 128256 else 1)

    def divides(mp: int) -> bool:
        try:
            return all(len(weight.shape_at(mp)) > 0 for weight in weights)
        except RefusedError:
            return False

    assert [mp for mp in (1, 2, 4, 8, 16, 32, 64) if divides(mp)] == EVEN_MP.get(name, [1, 2, 4, 8])
