"""Checksums of weights: whatever changes is found, wherever the weight lies."""

import math
import mmap
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from model.exact.blocks import exact_sizes
from model.params import Params
from model.transformer import Transformer
from model.weight_sums import WeightSums, checksum
from parallel import Mesh, RankFailedError, World
from parallel.environment import Environment, Placement
from tests.unit.model.conftest import random_weights

ALONE = World(Environment(), Placement(device="cpu", backend=None, threads=1, reason=""), None)
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float8_e4m3fn, torch.float64)
PARAMS = Params(
    dim=16,
    n_layers=2,
    n_heads=4,
    n_kv_heads=2,
    ffn_dim=24,
    vocab_size=20,
    norm_eps=1e-5,
    rope_theta=10000.0,
    rope_scaling=None,
    rope_reason="",
)


@st.composite
def weights(draw: st.DrawFn) -> tuple[bytearray, Tensor]:
    """A vector or a matrix of any bits, at any offset in the memory that is returned with it."""
    dtype = draw(st.sampled_from(DTYPES))
    shape = tuple(draw(st.lists(st.integers(1, 9), min_size=1, max_size=2)))
    before, count = draw(st.integers(0, 9)), math.prod(shape)
    memory = bytearray(draw(st.binary(min_size=(before + count) * dtype.itemsize, max_size=4096)))
    whole = torch.frombuffer(memory, dtype=dtype, count=before + count)
    # A view within a tensor, and one whose memory itself starts there.
    inside = whole[before:] if draw(st.booleans()) else torch.frombuffer(memory, dtype=dtype, count=count)
    return memory, inside.view(shape)


def bits(x: Tensor) -> Tensor:
    """A view of the tensor's own bytes [n, bytes of a number]."""
    return x.flatten().view(torch.uint8).view(-1, x.element_size())


@settings(deadline=None)
@given(weights(), st.data())
def test_any_flipped_bit_gives_another_checksum_and_flipped_back_the_same(
    found: tuple[bytearray, Tensor], data: st.DataObject
) -> None:
    _, weight = found
    before, own = checksum(weight), bits(weight)
    number, byte = data.draw(st.integers(0, len(own) - 1)), data.draw(st.integers(0, own.shape[1] - 1))
    bit = 1 << data.draw(st.integers(0, 7))
    own[number, byte] ^= bit
    assert checksum(weight) != before
    own[number, byte] ^= bit
    assert checksum(weight) == before


@settings(deadline=None)
@given(weights(), st.data())
def test_two_different_numbers_that_change_places_give_another_checksum(
    found: tuple[bytearray, Tensor], data: st.DataObject
) -> None:
    _, weight = found
    before, own = checksum(weight), bits(weight)
    a, b = (data.draw(st.integers(0, len(own) - 1)) for _ in range(2))
    same = torch.equal(own[a], own[b])
    own[[a, b]] = own[[b, a]]
    assert (checksum(weight) == before) == same


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_signs_that_are_flipped_two_in_a_row_are_found(dtype: torch.dtype) -> None:
    """Twice the top bit is nothing in a sum."""
    weight = torch.ones(8, 64, dtype=dtype)
    before = checksum(weight)
    weight[3, [7, 15]] *= -1
    assert checksum(weight) != before


def test_a_weight_that_is_not_in_one_piece_has_the_checksum_of_its_numbers() -> None:
    weight = torch.randn(12, 8, generator=torch.Generator().manual_seed(1))
    assert checksum(weight.t()) == checksum(weight.t().contiguous())
    assert checksum(weight[:, 2:5]) == checksum(weight[:, 2:5].clone())


@pytest.mark.parametrize("offset", range(0, 10, 2))
def test_a_mapped_weight_is_watched_in_its_file_at_any_offset(offset: int, tmp_path: Path) -> None:
    (tmp_path / "weights").write_bytes(bytes(range(256)) * 5)
    with (tmp_path / "weights").open("r+b") as file:
        mapped = mmap.mmap(file.fileno(), 0, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ | mmap.PROT_WRITE)
        weight = torch.frombuffer(mapped, dtype=torch.bfloat16, count=600, offset=offset).view(30, 20)
        before = checksum(weight)
        assert checksum(weight) == before
        file.seek(offset + 777)
        file.write(b"\0")
        file.flush()
        assert checksum(weight) != before


def model_of(dtype: torch.dtype) -> Transformer:
    model = Transformer(PARAMS, Mesh())
    model.load_state_dict(random_weights(PARAMS))
    return model.to(dtype).requires_grad_(False).eval()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_each_weight_that_changes_by_one_unit_in_the_last_place_is_named(dtype: torch.dtype) -> None:
    model = model_of(dtype)
    sums = WeightSums(model)
    assert sums.changed() == []
    sums.check(ALONE)
    for name, weight in model.named_parameters():
        words = weight.view(torch.int16 if dtype == torch.bfloat16 else torch.int32).flatten()
        words[len(words) // 2] += 1
        assert sums.changed() == [name]
        words[len(words) // 2] -= 1
    assert sums.changed() == []


def test_checksums_do_not_depend_on_the_number_of_threads() -> None:
    model, threads = model_of(torch.bfloat16), torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = WeightSums(model).sums
        torch.set_num_threads(3)
        assert WeightSums(model).sums == alone
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(threads)
    assert alone == {name: checksum(weight) for name, weight in model.named_parameters()}


def test_a_weight_of_several_blocks_is_watched_in_each() -> None:
    """Of 600 rows of 512 words some hundred are added up at a time."""
    weight = torch.zeros(600, 1024)
    found = {checksum(weight)}
    for row in range(0, 600, 25):
        weight[row, row] = 1
        found.add(checksum(weight))
        weight[row, row] = 0
    assert len(found) == 1 + 24


def test_a_rank_alone_is_told_which_of_its_weights_have_changed() -> None:
    model = model_of(torch.float32)
    sums = WeightSums(model)
    model.layers[1].feed_forward.w2.weight[3, 4] += 1  # type: ignore[union-attr, operator, index]
    with pytest.raises(RankFailedError, match=r"^rank 0: layers\.1\.feed_forward\.w2\.weight is not what was loaded"):
        sums.check(ALONE)
    for weight in model.parameters():
        weight.zero_()
    count = len(dict(model.named_parameters()))
    with pytest.raises(
        RankFailedError,
        match=rf"^rank 0: tok_embeddings\.weight, layers\.0\.attention_norm\.weight, layers\.0\.attention\.wq\.weight "
        rf"and {count - 3} more weights are not what was loaded: the memory of that rank is damaged, or its files",
    ):
        sums.check(ALONE)


def test_the_blocks_of_the_exact_mode_are_watched_too() -> None:
    assert len(exact_sizes(PARAMS)) > 1
    model = Transformer(PARAMS, Mesh(), exact=True).requires_grad_(False).eval()
    for weight in model.parameters():
        weight.fill_(1)
    sums = WeightSums(model)
    names = [name for name, _ in model.named_parameters() if "w1" in name]
    assert len(names) > PARAMS.n_layers
    dict(model.named_parameters())[names[-1]][0, 0] = 2
    assert sums.changed() == [names[-1]]
