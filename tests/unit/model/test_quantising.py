"""Quantised weights: which numbers, how many bytes, and what is computed with them."""

import math
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from model.checkpoint.checkpoint import Checkpoint
from model.checkpoint.loading import load_weights
from model.checkpoint.opening import open_checkpoint
from model.llama import Llama
from model.placing import private_bytes, share_bytes
from model.planning.host_memory import host_memories
from model.planning.plan import Workload, plan_of, shares_of
from model.quantisation import check_quantisation, format_of
from parallel import Mesh, RankFailedError, RefusedError
from parallel.kernels.formats import Quantisation, quantised_bytes
from parallel.kernels.quantised import Int4Weight, Int8Weight, QuantisedWeight
from tests.distributed.threads import run_as_threads
from tests.minis import Mini
from tests.quantised import CPU, load_quantised, plain_of
from tests.reference import Reference
from tests.unit.model.checkpoint.folders import to_hugging_face

CUDA = torch.device("cuda")
KINDS: tuple[Quantisation, ...] = ("int8", "int4")
# 160 and 320 columns: the last group of some rows is not full.
SIZES = Mini(dim=160, n_heads=10, n_kv_heads=5, multiple_of=320, vocabulary=100, even_mp=(1, 5))
PROMPT = [1, 7, 3, 39, 12, 8, 21]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return SIZES.write(tmp_path_factory.mktemp("quantising") / "ckpt", 1)


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> Quantisation:
    found: Quantisation = request.param
    return found


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("width", [64, 100, 300])
def test_whole_numbers_of_a_rows_whole_range_come_back_as_they_were(width: int, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(5)
    eight = torch.randint(-127, 128, (70, width), generator=generator)
    eight[:, 3] = 127
    assert torch.equal(Int8Weight.of(eight.to(dtype)).dequantised(torch.float32), eight.float())
    four = torch.randint(0, 16, (70, width), generator=generator)
    # Each group has both ends of the range.
    four[:, ::32], four[:, 1::32] = 0, 15
    assert torch.equal(Int4Weight.of(four.to(dtype) - 6).dequantised(torch.float32), four.float() - 6)


def test_rows_and_groups_of_one_number_come_back_and_zeros_stay_zeros() -> None:
    weight = torch.tensor([0.0, -3.0, 0.5]).unsqueeze(1).expand(3, 128)
    for quantised in (Int8Weight.of(weight), Int4Weight.of(weight)):
        assert torch.equal(quantised.dequantised(torch.float32), weight)


def test_no_number_is_further_away_than_half_a_step() -> None:
    weight = torch.randn(600, 1000, generator=torch.Generator().manual_seed(6))
    eight, four = Int8Weight.of(weight), Int4Weight.of(weight)
    # Half a step, and what float32 rounds of it.
    limit = 0.5001 * eight.scales.unsqueeze(1)
    assert bool(((eight.dequantised(torch.float32) - weight).abs() <= limit).all())
    # The scale and the offset are bfloat16, of 8 bits: 15 steps and the offset are off by 2**-9 of themselves.
    step, offset = four.scales.float().abs().repeat_interleave(64, 1)[:, :1000].unbind(2)
    limit = 0.5001 * step + (15 * step + offset) * 2.0**-8
    assert bool(((four.dequantised(torch.float32) - weight).abs() <= limit).all())


@pytest.mark.parametrize("shape", [(1, 1), (5, 64), (7, 65), (3, 1000)])
def test_bytes_are_counted_as_they_stand_in_memory(shape: tuple[int, int]) -> None:
    weight = torch.randn(shape)
    for kind, quantised in (("int8", Int8Weight.of(weight)), ("int4", Int4Weight.of(weight))):
        assert quantised_bytes(kind, *shape) == sum(part.nbytes for part in quantised.parameters())
        assert quantised.shape == torch.Size(shape)


@pytest.mark.parametrize(
    ("prompt", "tolerance"),
    [
        # Float32 sums in another order, over two layers, relative to the largest logit.
        ([*PROMPT, *PROMPT[::-1]], 1e-5),
        # For few rows the kernels take x as whole numbers of 16 bits, off by up to 2**-16 of the largest of 64.
        (PROMPT, 5e-4),
    ],
    ids=["many tokens", "few tokens"],
)
def test_logits_are_those_of_a_plain_model_with_the_numbers_that_are_left(
    folder: Path, kind: Quantisation, prompt: list[int], tolerance: float
) -> None:
    reference = Reference(folder)
    before = reference.logits(prompt)
    reference.weights = {name: plain_of(name, weight, kind) for name, weight in reference.weights.items()}
    wanted = reference.logits(prompt)
    model = load_quantised(open_checkpoint(folder), Mesh(), kind)
    found = model.logits(model(torch.tensor([prompt])))[0]
    largest = float(wanted.abs().max())
    torch.testing.assert_close(found, wanted, rtol=0, atol=tolerance * largest)
    assert float((wanted - before).abs().max()) > 10 * tolerance * largest, "quantising would change nothing"


def test_the_matrices_are_quantised_output_to_int8_at_least_and_the_rest_stays(folder: Path) -> None:
    model = load_quantised(open_checkpoint(folder), Mesh(), "int4", torch.bfloat16)
    kinds = {name: type(module) for name, module in model.named_modules() if isinstance(module, QuantisedWeight)}
    assert Counter(kinds.values()) == {Int4Weight: 14, Int8Weight: 1}
    assert kinds["output.weight"] is Int8Weight
    state = model.state_dict()
    assert state["layers.0.attention.wq.weight.numbers"].dtype is torch.uint8
    assert state["layers.1.feed_forward.w2.weight.scales"].dtype is torch.bfloat16
    plain = {name: value.dtype for name, value in state.items() if not name.endswith((".numbers", ".scales"))}
    assert set(plain.values()) == {torch.bfloat16}
    assert set(plain) == {
        *("tok_embeddings.weight", "norm.weight"),
        *(f"layers.{layer}.{norm}.weight" for layer in (0, 1) for norm in ("attention_norm", "ffn_norm")),
    }


def held_bytes(checkpoint: Checkpoint, mp: int, kind: Quantisation, dtype: torch.dtype) -> list[int]:
    def hold(mesh: Mesh) -> int:
        return sum(each.nbytes for each in load_quantised(checkpoint, mesh, kind, dtype).parameters())

    return run_as_threads(mp, hold)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("mp", [1, 3, 5])
def test_what_is_planned_is_what_each_rank_holds(folder: Path, kind: Quantisation, mp: int, dtype: torch.dtype) -> None:
    checkpoint = open_checkpoint(folder)
    held = held_bytes(checkpoint, mp, kind, dtype)
    assert share_bytes(checkpoint.params, mp, dtype, checkpoint.embedding_dim, kind) == max(held)
    work = Workload(
        params=checkpoint.params,
        embedding_dim=checkpoint.embedding_dim,
        dtype=str(dtype).removeprefix("torch."),
        stored="float32",
        device="cuda",
        batch=1,
        max_seq_len=8,
        quantize=kind,
    )
    assert [share.weights_bytes for share in shares_of(work, mp)] == held
    # On a GPU one weight as it is stored stands beside them, the largest: w1.
    largest = max(weight.nbytes for weight in rank_weights(checkpoint, 0, mp).values() if weight.dim() > 1)
    assert private_bytes(checkpoint, mp, dtype, CUDA, kind) == max(held) + largest


def test_a_prefill_is_planned_with_room_for_the_largest_weight_written_out(folder: Path, kind: Quantisation) -> None:
    params = open_checkpoint(folder).params
    work = Workload(
        params=params, embedding_dim=1, dtype="bfloat16", stored="float32", device="cuda", batch=2, max_seq_len=100
    )
    (plain,) = plan_of(work, shares_of(work, 1)).ranks
    (rank,) = plan_of(replace(work, quantize=kind), shares_of(replace(work, quantize=kind), 1)).ranks
    # w1, in bfloat16. The two rows of a step are multiplied with the whole numbers as they stand.
    assert rank.prefill_bytes - plain.prefill_bytes == 2 * params.ffn_dim * params.dim
    assert rank.decode_bytes == plain.decode_bytes


def rank_weights(checkpoint: Checkpoint, rank: int, mp: int) -> dict[str, Tensor]:
    """As they come before any is quantised, tok_embeddings and norms left out."""
    names = [weight.name for weight in checkpoint.weights if format_of(weight.name, "int8") != "none"]
    weights = load_weights(checkpoint, rank, mp, torch.bfloat16, CPU, as_stored=names)
    return {name: weights[name] for name in names}


@pytest.mark.parametrize(("shards", "ranks"), [(1, 1), (1, 5), (5, 5), (5, 1), (5, 3)])
def test_until_they_are_quantised_weights_stay_in_their_files_but_those_put_together(
    tmp_path: Path, shards: int, ranks: int
) -> None:
    checkpoint = open_checkpoint(SIZES.write(tmp_path / "ckpt", shards))
    planned = host_memories(checkpoint, checkpoint.split(ranks), "bfloat16", "cuda", "int8")
    for rank in range(ranks):
        weights = rank_weights(checkpoint, rank, ranks)
        assert {weight.dtype for weight in weights.values()} == {torch.float32}
        lines = [line.split() for line in Path("/proc/self/maps").read_text().splitlines()]
        ends = [line[0].split("-") for line in lines if line[-1].startswith(str(tmp_path))]
        files = [range(int(start, 16), int(stop, 16)) for start, stop in ends]
        copied = [one for one in weights.values() if not any(one.data_ptr() in place for place in files)]
        assert planned[rank].copied_bytes == sum(weight.nbytes for weight in copied)
        assert bool(copied) == (shards > ranks)


def test_room_on_a_cpu_is_asked_for_the_quantised_weights_and_the_copies(folder: Path, kind: Quantisation) -> None:
    checkpoint = open_checkpoint(folder)
    (held,) = held_bytes(checkpoint, 1, kind, torch.bfloat16)
    # The files are float32: in bfloat16 nothing can stay in them, in float32 what is not quantised does.
    assert private_bytes(checkpoint, 1, torch.bfloat16, CPU, kind) == held
    plain = sum(weight.nbytes for weight in load_quantised(checkpoint, Mesh(), kind).parameters() if weight.dim() == 1)
    in_files = 4 * (checkpoint.params.vocab_size + 5) * checkpoint.params.dim
    (held,) = held_bytes(checkpoint, 1, kind, torch.float32)
    assert private_bytes(checkpoint, 1, torch.float32, CPU, kind) == held - in_files
    assert plain > 0


def test_every_layout_gives_the_same_numbers(folder: Path, tmp_path: Path, kind: Quantisation) -> None:
    wanted = load_quantised(open_checkpoint(folder), Mesh(), kind).state_dict()
    hf = to_hugging_face(folder, tmp_path / "hf")
    for other in (SIZES.write(tmp_path / "five", 5), hf):
        found = load_quantised(open_checkpoint(other), Mesh(), kind).state_dict()
        assert all(torch.equal(found[name], value) for name, value in wanted.items())


def build(folder: Path, **how: Any) -> Llama:
    return Llama.build(str(folder), None, 32, 2, device="cpu", dtype="float32", **how)


def test_a_quantised_weight_that_has_changed_is_found(folder: Path, kind: Quantisation) -> None:
    llama = build(folder, quantize=kind, check_weights=True)
    llama.generate([PROMPT], 2, temperature=0, eos_ids=[])
    weight = llama.model.layers[1].attention.wo.weight
    weight.numbers.data[3, 7] += 1
    with pytest.raises(RankFailedError, match=re.escape("rank 0: layers.1.attention.wo.weight.numbers is not what")):
        llama.generate([PROMPT], 2, temperature=0, eos_ids=[])


def test_weights_that_are_not_finite_are_told_of_among_whole_numbers(folder: Path, kind: Quantisation) -> None:
    llama = build(folder, quantize=kind)
    llama.model.layers[1].feed_forward.w2.weight.scales.data[0] = math.nan
    with pytest.raises(RankFailedError, match="from rank 0, whose weights are not finite"):
        llama.generate([PROMPT], 2, temperature=0, eos_ids=[])


def test_what_cannot_be_is_refused_with_a_reason(folder: Path) -> None:
    assert check_quantisation("none", exact=True) == "none"
    with pytest.raises(RefusedError, match="quantize is 'int3'; wanted none, int8 or int4"):
        build(folder, quantize="int3")
    with pytest.raises(
        RefusedError, match=r"--exact and --quantize int8 do not go together: .*; leave one of them out"
    ):
        build(folder, quantize="int8", exact=True)
