"""The exact mode: the same logits to the bit at every MP that divides a model evenly."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from model.building import build_model
from model.checkpoint.opening import open_checkpoint
from model.exact.blocks import exact_sizes
from model.exact.layers import sum_of_blocks
from model.looking import look
from model.tokenizers.opening import open_tokenizer
from parallel import Mesh, RefusedError, World
from tests.distributed.pool import Pool
from tests.distributed.same_at_any_mp import Run, load, require_same_at_all, run, run_at, wordy_prompts
from tests.distributed.threads import run_as_threads
from tests.minis import MINIS, Mini
from tests.reference import Reference

DEMO = Path(__file__).resolve().parents[2] / "configs" / "demo"
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
PROMPTS = [[1, 7, 3, 39, 12, 8, 21, 5, 33, 4, 70], [5, 2], [61, 14, 9, 9, 2, 71]]
STEPS = 5
# All of 12 ranks hold two queries each, and those of every third rank use two KV heads.
ASKEW = Mini(dim=96, n_heads=24, n_kv_heads=8, multiple_of=12, vocabulary=132, embedding_dim=0)
SHAPES = {**MINIS, "24 heads in pairs, 8 KV heads": ASKEW}
SIZES = {
    "12 heads": (1, 2, 4),
    "12 heads, 4 KV heads": (1, 2, 4, 6, 12),
    "16 heads, 2 KV heads": (1, 2, 4, 8, 16),
    "16 heads, 8 KV heads": (1, 2, 4, 8, 16),
    "24 heads, 8 KV heads": (1, 2, 4, 8),
    "26 heads": (1, 2),
    "24 heads in pairs, 8 KV heads": (1, 2, 4, 12),
}


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@DTYPES
def test_the_demo_checkpoints_logits_are_the_same_on_1_2_4_and_8_ranks(dtype: torch.dtype) -> None:
    """On 8 ranks each KV head stands twice."""
    require_same_at_all((2, 4, 8), open_checkpoint(DEMO), dtype, PROMPTS, STEPS)


def test_without_the_exact_mode_the_demo_checkpoints_logits_depend_on_the_ranks() -> None:
    """Else the test above would prove nothing."""
    checkpoint = open_checkpoint(DEMO)
    one, two = (run_at(mp, checkpoint, torch.float32, PROMPTS, STEPS, exact=False)[0] for mp in (1, 2))
    assert not one.same(two)


@DTYPES
@pytest.mark.parametrize("name", SHAPES)
def test_a_miniatures_logits_are_the_same_at_every_mp_that_divides_it(
    name: str, dtype: torch.dtype, tmp_path: Path
) -> None:
    folder = SHAPES[name].write(tmp_path / "ckpt", 1)
    checkpoint = open_checkpoint(folder)
    assert exact_sizes(checkpoint.params) == SIZES[name]
    found = require_same_at_all(SIZES[name][1:], checkpoint, dtype, PROMPTS, STEPS)
    if dtype == torch.float32:
        # Float32 sums in another order, over two layers, relative to the largest logit.
        wanted = Reference(folder).logits(PROMPTS[0])
        torch.testing.assert_close(found.prefill[0], wanted, rtol=0, atol=1e-5 * float(wanted.abs().max()))


@torch.inference_mode()
def whole_sequences(world: World, folder: Path) -> list[Run | Tensor]:
    """By the way of the command, and without a cache; on rank 0 alone (MP 1), and over all."""
    found: list[Run | Tensor] = []
    for dtype in (torch.float32, torch.bfloat16):
        model = build_model(look(str(folder), None, 2), world, str(dtype).removeprefix("torch."), exact=True)
        alone = load(open_checkpoint(folder), Mesh(), dtype)
        for each in (model, alone):
            found += [run(each, PROMPTS, STEPS), each.logits(each(torch.tensor(PROMPTS[:1])))]
    return found


@pytest.mark.parametrize("ranks", [2], indirect=True, ids="{}-ranks".format)
def test_two_ranks_that_are_processes_have_the_logits_of_one(ranks: Pool) -> None:
    for found in ranks.run(whole_sequences, DEMO):
        for over_ranks, alone in ((0, 2), (1, 3), (4, 6), (5, 7)):
            pair = found[over_ranks], found[alone]
            assert pair[0].same(pair[1]) if isinstance(pair[0], Run) else torch.equal(*pair)


def build_with_threads(world: World, folder: Path, threads: list[str]) -> str:
    os.environ["OMP_NUM_THREADS"] = threads[world.mesh.rank]
    try:
        build_model(look(str(folder), None, 2), world, "float32", exact=True)
    except RefusedError as error:
        return str(error)
    finally:
        del os.environ["OMP_NUM_THREADS"]
    return f"{torch.get_num_threads()} threads"


@pytest.mark.parametrize("ranks", [2], indirect=True, ids="{}-ranks".format)
def test_ranks_compute_on_one_thread_unless_told_and_are_all_told_the_same(ranks: Pool) -> None:
    assert ranks.run(build_with_threads, DEMO, ["1", ""]) == ["1 threads"] * 2
    sentence = "the ranks disagree on the number of CPU threads (OMP_NUM_THREADS) (the exact mode): rank 0 has 1"
    for refusal in ranks.run(build_with_threads, DEMO, ["1", "2"]):
        assert refusal.startswith(sentence)
    assert ranks.run(build_with_threads, DEMO, ["2", "2"]) == ["2 threads"] * 2
    assert ranks.run(build_with_threads, DEMO, ["", ""]) == ["1 threads"] * 2


def sum_at(mp: int, parts: list[Tensor]) -> list[Tensor]:
    def body(mesh: Mesh) -> Tensor:
        each = len(parts) // mp
        return sum_of_blocks(iter(parts[mesh.rank * each :][:each]), each, mesh)

    return run_as_threads(mp, body)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 24), st.integers(0, 2**32))
def test_a_sum_over_blocks_is_the_same_to_the_bit_however_they_are_dealt_out(count: int, seed: int) -> None:
    # Numbers whose sum in float32 depends on the order: large ones that nearly cancel, among small ones.
    generator = torch.Generator().manual_seed(seed)
    parts = list(torch.randn(count, 64, generator=generator) * 2 ** (24 * torch.rand(count, 64, generator=generator)))
    (wanted,) = sum_at(1, parts)
    for mp in (mp for mp in range(2, count + 1) if count % mp == 0):
        assert all(torch.equal(found, wanted) for found in sum_at(mp, parts))
    precise, sizes = torch.stack(parts).double().sum(0), torch.stack(parts).double().abs().sum(0)
    # Each of fewer than 24 additions rounds by half a unit in the last place of a sum within `sizes`.
    assert bool(((wanted - precise).abs() <= 24 * 2.0**-24 * sizes).all())
    if count > 8:
        assert not torch.equal(wanted, sum_at(1, parts[::-2] + parts[-2::-2])[0]), "the order would make no difference"


@pytest.mark.drill
@DTYPES
def test_fifty_prompts_of_200_tokens_have_the_same_logits_on_1_2_4_and_8_ranks(dtype: torch.dtype) -> None:
    checkpoint, tokenizer = open_checkpoint(DEMO), open_tokenizer(DEMO / "tokenizer.model")
    prompts = wordy_prompts(tokenizer, 50, 200)
    assert {len(prompt) for prompt in prompts} == {200}
    for start, stop in ((0, 1), (1, 5), (5, 15), (15, 30), (30, 50)):
        require_same_at_all((2, 4, 8), checkpoint, dtype, prompts[start:stop], 8)
