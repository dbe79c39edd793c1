"""The exact mode's blocks: which there are, what each holds, and in which order their sums are added."""

import gc
import weakref
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from model.checkpoint.loading import load_weights
from model.checkpoint.opening import open_checkpoint
from model.cuts import all_weights
from model.exact.blocks import blocks_of, check_exact, exact_sizes
from model.exact.layers import sum_of_blocks
from model.exact.packing import pack
from model.params import Params
from model.transformer import Transformer
from parallel import Mesh, RefusedError
from tests.reference import merged_weights

DEMO = Path(__file__).resolve().parents[3] / "configs" / "demo"


def params_of(dim: int, n_heads: int, n_kv_heads: int, ffn_dim: int, vocab_size: int) -> Params:
    return Params(
        dim=dim,
        n_layers=1,
        n_heads=n_heads,
        n_kv_heads=n_kv_heads,
        ffn_dim=ffn_dim,
        vocab_size=vocab_size,
        norm_eps=1e-5,
        rope_theta=10000.0,
        rope_scaling=None,
        rope_reason="by the test",
    )


SHAPES = {
    "Llama 1 30B": (params_of(6656, 52, 52, 17920, 32000), (1, 2, 4)),
    "Llama 2 13B": (params_of(5120, 40, 40, 13824, 32000), (1, 2, 4, 8)),
    "Llama 2 70B": (params_of(8192, 64, 8, 28672, 32000), (1, 2, 4, 8, 16, 32, 64)),
    "Llama 3.1 8B": (params_of(4096, 32, 8, 14336, 128256), (1, 2, 4, 8, 16, 32)),
    "Llama 3.2 3B": (params_of(3072, 24, 8, 8192, 128256), (1, 2, 4, 8)),
    # 8 KV heads do not go evenly on 3 or 6 ranks; on 12, some ranks' queries use two.
    "24 heads in pairs": (params_of(96, 24, 8, 264, 132), (1, 2, 4, 12)),
    # No KV head can be cut in 3 while 3 ranks could each have some: then none but 1 goes evenly.
    "4 KV heads, thirds": (params_of(48, 12, 4, 39, 96), (1,)),
}


@pytest.mark.parametrize("name", SHAPES)
def test_the_sizes_are_those_at_which_every_rank_holds_as_much(name: str) -> None:
    params, wanted = SHAPES[name]
    assert exact_sizes(params) == wanted
    assert all(wanted[-1] % mp == 0 for mp in wanted)


def test_another_size_is_refused_with_those_that_work() -> None:
    with pytest.raises(RefusedError) as refusal:
        check_exact(SHAPES["Llama 1 30B"][0], 13)
    assert str(refusal.value) == (
        "--exact at MP 13: 52 heads (52 KV heads), 17920 feed-forward columns, 32000 vocabulary entries and a width of "
        "6656 do not all go evenly; choose an MP of 1, 2 or 4, or drop --exact"
    )
    with torch.device("meta"), pytest.raises(RefusedError, match="choose an MP of 1, 2 or 4"):
        Transformer(SHAPES["Llama 1 30B"][0], Mesh(0, 3), exact=True)


@pytest.mark.parametrize("name", SHAPES)
def test_ranks_hold_all_blocks_in_order_and_the_units_that_their_queries_use(name: str) -> None:
    params, sizes = SHAPES[name]
    group = params.n_heads // params.n_kv_heads
    for mp in sizes:
        ranks = [blocks_of(params, rank, mp) for rank in range(mp)]
        assert [block for blocks in ranks for block in blocks.own] == list(range(sizes[-1]))
        for blocks in ranks:
            used = set()
            for block in blocks.own:
                heads = range(block * params.n_heads // sizes[-1], (block + 1) * params.n_heads // sizes[-1])
                units = [blocks.unit_heads[unit] for unit in blocks.units_of(block)]
                # The KV heads of the block's queries, each once.
                held = [head for unit in units for head in range(unit.start, unit.stop)]
                assert held == sorted({head // group for head in heads})
                used |= set(blocks.units_of(block))
            assert sorted(used) == list(blocks.own_units)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=["as in the files", "converted"])
@pytest.mark.parametrize("mp", [1, 2, 4, 8])
def test_the_blocks_of_all_ranks_are_metas_weights_at_any_mp(mp: int, dtype: torch.dtype) -> None:
    checkpoint = open_checkpoint(DEMO)
    packed: dict[str, Tensor] = {}
    for rank in range(mp):
        weights = load_weights(checkpoint, rank, mp, dtype, torch.device("cpu"))
        own = pack(weights, checkpoint.params, Mesh(rank, mp), checkpoint.embedding_dim)
        assert weights == {}
        for name, part in own.items():
            assert part.is_contiguous()
            assert part.data_ptr() % 64 == 0 or not name.rsplit(".", 1)[-1].isdecimal()
            # A unit may stand on several ranks.
            assert torch.equal(packed.setdefault(name, part), part) or name == "tok_embeddings.weight"
    whole = merged_weights(DEMO, dtype)
    for weight in all_weights(checkpoint.params, checkpoint.embedding_dim):
        if weight.cut is None:
            assert torch.equal(packed[weight.name], whole[weight.name])
        elif weight.name != "tok_embeddings.weight":
            count = 4 if weight.name.split(".")[-2] in ("wk", "wv") else 8
            parts = [packed[f"{weight.name}.{number}"] for number in range(count)]
            assert len({part.shape for part in parts}) == 1
            assert torch.equal(torch.cat(parts, weight.cut), whole[weight.name])


@pytest.mark.parametrize("mp", [1, 2, 4, 8])
def test_a_cache_has_a_place_for_each_unit_and_takes_no_more_memory(mp: int) -> None:
    params = replace(params_of(128, 8, 4, 384, 2048), n_layers=7)
    for rank in range(mp):
        exact, normal = (Transformer(params, Mesh(rank, mp), exact=exact) for exact in (True, False))
        cache = exact.new_cache(5, 30)
        units = 4 // min(mp, 4)
        for tensors in (cache.keys_LBkSH, cache.values_LBkSH):
            assert [tuple(tensor.shape) for tensor in tensors] == [(5, 1, 30, 16)] * (7 * units)
        held = sum(tensor.nbytes for tensor in (*cache.keys_LBkSH, *cache.values_LBkSH))
        assert held == exact.cache_bytes(5, 30) == normal.cache_bytes(5, 30)


N = list(torch.randn(12, 64, generator=torch.Generator().manual_seed(5)))
IN_ORDER = {
    1: N[0],
    2: N[0] + N[1],
    3: (N[0] + N[1]) + N[2],
    4: (N[0] + N[1]) + (N[2] + N[3]),
    5: (((N[0] + N[1]) + N[2]) + N[3]) + N[4],
    6: ((N[0] + N[1]) + (N[2] + N[3])) + (N[4] + N[5]),
    8: ((N[0] + N[1]) + (N[2] + N[3])) + ((N[4] + N[5]) + (N[6] + N[7])),
    10: ((((N[0] + N[1]) + (N[2] + N[3])) + (N[4] + N[5])) + (N[6] + N[7])) + (N[8] + N[9]),
    12: (((N[0] + N[1]) + (N[2] + N[3])) + ((N[4] + N[5]) + (N[6] + N[7]))) + ((N[8] + N[9]) + (N[10] + N[11])),
}


@pytest.mark.parametrize("count", IN_ORDER)
def test_neighbours_are_added_while_their_number_is_even_and_the_rest_from_first_to_last(count: int) -> None:
    assert torch.equal(sum_of_blocks(iter(N[:count]), count, Mesh()), IN_ORDER[count])
    if count > 3:
        backwards = sum(reversed(N[: count - 1]), start=N[count - 1])
        assert not torch.equal(IN_ORDER[count], backwards), "the order would make no difference"


def test_parts_are_added_in_float32() -> None:
    # 256 + 1 is no bfloat16.
    parts = [torch.tensor(value, dtype=torch.bfloat16) for value in (256.0, 1.0, 1.0)]
    found = sum_of_blocks(iter(parts), 3, Mesh())
    assert found.dtype == torch.float32
    assert found.item() == 258.0


def test_few_parts_are_held_at_a_time() -> None:
    held: weakref.WeakSet[Tensor] = weakref.WeakSet()
    most = 0

    def parts() -> Iterator[Tensor]:
        nonlocal most
        for number in range(64):
            gc.collect(0)
            most = max(most, len(held))
            part = torch.full((3,), float(number))
            held.add(part)
            yield part
            del part

    assert sum_of_blocks(parts(), 64, Mesh()).tolist() == [2016.0] * 3
    # One of the 64 waits for its neighbour, beside sums of 2, 4, ... 32.
    assert most <= 2
