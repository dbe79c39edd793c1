"""Whatever way a text is cut into passes, the decoder sees the same: with a cache, without one, in any row."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from model.cache import KVCache
from model.checkpoint.params_json import read_params
from model.params import Params
from model.transformer import Transformer
from parallel import Mesh
from tests.reference import Reference, merged_weights
from tests.unit.model.conftest import MakeFolder

# Sums are in float64, but rotary embedding rounds queries and keys to float32 (2^-24 = 6e-8): two ways
# that differ by 1e-16 before it may differ by one such step behind it.
SAME = {"rtol": 0.0, "atol": 2e-6}
TEXT = [3, 17, 8, 8, 1, 22, 9, 0, 5, 14, 11, 2]


def transformer(folder: Path, dtype: torch.dtype = torch.float64, max_tokens: int = 32) -> Transformer:
    params = read_params(folder / "params.json")
    model = Transformer(params, Mesh(), 1)
    model.load_state_dict(merged_weights(folder, dtype), assign=True)
    model.requires_grad_(False)
    return model


def cache_of(model: Transformer, batch: int, max_tokens: int = 32) -> KVCache:
    weight = model.output.weight
    return KVCache(model.params, model.mesh, batch, max_tokens, weight.dtype, weight.device)


def seen_without_cache(model: Transformer, tokens: list[int]) -> Tensor:
    hidden_TD: Tensor = model(torch.tensor([tokens]))[0]
    return hidden_TD


@pytest.fixture(params=[1, 2, 4], ids="{}-kv-heads".format)
def model(request: pytest.FixtureRequest, make_folder: MakeFolder) -> Transformer:
    return transformer(make_folder("tiny", n_kv_heads=request.param))


@pytest.mark.parametrize("passes", [[12], [1] * 12, [5, 1, 1, 1, 1, 1, 1, 1], [4, 4, 4], [1, 6, 2, 3], [11, 1]])
def test_a_text_in_several_passes_gives_what_one_pass_without_a_cache_gives(
    model: Transformer, passes: list[int]
) -> None:
    cache, hidden, start = cache_of(model, 1), [], 0
    for size in passes:
        hidden.append(model(torch.tensor([TEXT[start : start + size]]), cache)[0])
        cache.advance([size])
        start += size
    torch.testing.assert_close(torch.cat(hidden), seen_without_cache(model, TEXT), **SAME)


def test_rows_of_different_lengths_see_only_themselves(model: Transformer) -> None:
    rows = [TEXT[:3], TEXT[4:5], TEXT[2:9]]
    longest = max(map(len, rows))
    cache = cache_of(model, len(rows))
    hidden = model(torch.tensor([row + [0] * (longest - len(row)) for row in rows]), cache)
    for row, seen in zip(rows, hidden, strict=True):
        torch.testing.assert_close(seen[: len(row)], seen_without_cache(model, row), **SAME)
    cache.advance([len(row) for row in rows])
    for step in range(4):
        new = [TEXT[(step * 5 + row) % len(TEXT)] for row in range(len(rows))]
        seen = model(torch.tensor(new).unsqueeze(1), cache)[:, 0]
        cache.advance([1] * len(rows))
        rows = [[*row, token] for row, token in zip(rows, new, strict=True)]
        expected = torch.stack([seen_without_cache(model, row)[-1] for row in rows])
        torch.testing.assert_close(seen, expected, **SAME)


def test_several_new_tokens_behind_rows_of_different_lengths_see_only_themselves(model: Transformer) -> None:
    cache = cache_of(model, 2)
    model(torch.tensor([TEXT[:5], [*TEXT[:2], 0, 0, 0]]), cache)
    cache.advance([5, 2])
    seen = model(torch.tensor([TEXT[5:8], TEXT[2:5]]), cache)
    torch.testing.assert_close(seen[0], seen_without_cache(model, TEXT[:8])[5:], **SAME)
    torch.testing.assert_close(seen[1], seen_without_cache(model, TEXT[:5])[2:], **SAME)


def test_what_pads_a_shorter_row_changes_nothing_to_the_bit(model: Transformer) -> None:
    outcomes = []
    for padding in (0, 23):
        cache = cache_of(model, 2)
        model(torch.tensor([TEXT[:6], [*TEXT[:2], *[padding] * 4]]), cache)
        cache.advance([6, 2])
        outcomes.append(model(torch.tensor([[7], [8]]), cache))
    assert torch.equal(outcomes[0], outcomes[1])


def test_a_row_that_has_ended_idles_in_its_last_place_and_leaves_the_others_alone(model: Transformer) -> None:
    cache = cache_of(model, 2, max_tokens=8)
    model(torch.tensor([TEXT[:4], TEXT[4:8]]), cache)
    cache.advance([4, 4])
    for step in range(3):
        seen = model(torch.tensor([[9], [TEXT[8 + step]]]), cache)[1, 0]
        cache.advance([0, 1])
        torch.testing.assert_close(seen, seen_without_cache(model, TEXT[4 : 9 + step])[-1], **SAME)
    assert cache.lengths == [4, 7]


def test_a_token_never_sees_one_that_comes_later(model: Transformer) -> None:
    other = [*TEXT[:7], *[token ^ 1 for token in TEXT[7:]]]
    before, after = seen_without_cache(model, TEXT), seen_without_cache(model, other)
    torch.testing.assert_close(before[:7], after[:7], **SAME)
    assert float((before[7:] - after[7:]).abs().amax(-1).min()) > 1e-3


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"n_kv_heads": 1},
        {"n_kv_heads": 2, "rope_theta": 500000.0, "use_scaled_rope": True},
        {"use_scaled_rope": True, "rope_scaling_factor": 32.0, "norm_eps": 1e-2},
        {"ffn_dim_multiplier": 1.3, "multiple_of": 16},
    ],
    ids=["Llama 1", "one KV head", "Llama 3.1", "another factor and eps", "another width"],
)
def test_logits_are_those_of_the_plain_reference(make_folder: MakeFolder, changes: dict[str, Any]) -> None:
    folder = make_folder("tiny", **changes)
    model, reference = transformer(folder), Reference(folder, torch.float64)
    logits = model.logits(seen_without_cache(model, TEXT))
    assert logits.dtype == torch.float32
    expected = reference.logits(TEXT)
    # Our angles, queries and keys are float32, the reference's are float64; logits leave as float32.
    torch.testing.assert_close(logits.double(), expected, rtol=0, atol=1e-5 * float(expected.abs().max()))


@pytest.mark.parametrize(("mp", "embedding_dim"), [(2, 0), (2, 1), (4, 0), (4, 1)])
def test_the_reference_puts_shards_together_as_they_were_before(
    make_folder: MakeFolder, mp: int, embedding_dim: int
) -> None:
    whole = merged_weights(make_folder("whole"))
    merged = merged_weights(make_folder("cut", mp=mp, embedding_dim=embedding_dim))
    assert list(merged) == list(whole)
    assert all(torch.equal(merged[name], whole[name]) for name in whole)


def test_a_cache_of_this_ranks_share_holds_its_kv_heads_alone() -> None:
    sizes: dict[str, Any] = {"dim": 32, "n_layers": 3, "n_heads": 4, "ffn_dim": 8, "vocab_size": 8, "norm_eps": 1e-5}
    params = Params(**sizes, n_kv_heads=2, rope_theta=1e4, rope_scaling=None, rope_reason="by the test")
    cache = KVCache(params, Mesh(rank=1, size=2), 5, 7, torch.float32, torch.device("cpu"))
    assert [tuple(keys.shape) for keys in cache.keys_LBkSH] == [(5, 1, 7, 8)] * 3
    assert [tuple(values.shape) for values in cache.values_LBkSH] == [(5, 1, 7, 8)] * 3


def test_a_cache_holds_each_kv_head_that_the_ranks_queries_use_where_ranks_share_them() -> None:
    sizes: dict[str, Any] = {"dim": 64, "n_layers": 1, "n_heads": 8, "ffn_dim": 8, "vocab_size": 8, "norm_eps": 1e-5}
    params = Params(**sizes, n_kv_heads=2, rope_theta=1e4, rope_scaling=None, rope_reason="by the test")
    kv_heads = []
    for rank in range(3):
        cache = KVCache(params, Mesh(rank, 3), 5, 7, torch.float32, torch.device("cpu"))
        assert cache.keys_LBkSH[0].shape == cache.values_LBkSH[0].shape
        kv_heads.append(cache.keys_LBkSH[0].shape[1])
    # Query heads 0-2, 3-5 and 6-7, four to a KV head: the middle rank's use both.
    assert kv_heads == [1, 2, 1]
