"""Each processor and every combination against transformers' own, bit for bit; and what must hold for any scores."""

import math
from collections.abc import Iterator
from fractions import Fraction
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import (
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    LogitsProcessor,
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from model.generation.processors import (
    MinP,
    Processor,
    RepetitionPenalty,
    Temperature,
    TopK,
    TopP,
    process,
    processors_of,
)
from model.generation.sampling import draw

quick = settings(max_examples=120, deadline=None, database=None)
NOTHING = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "repetition_penalty": 1.0}
Batch = tuple[list[list[int]], Tensor]

# A byte chooses a score: steps of a half, which make many ties; -inf; numbers at which exp is 0, or a softmax sees
# nothing but the largest (no processor overflows on 1e30); and numbers that have nothing in common.
FAR = [0.0, -0.0, 1e-30, -1e-30, 88.0, -104.0, 1e4, -1e4, 65504.0, 1e30, -1e30]
STEPS = [half / 2 for half in range(-6, 7)]
SCORES = torch.tensor(STEPS * 8 + [-math.inf] * 32 + FAR * 2 + [30 * math.sin(n) ** 3 for n in range(98)])
assert len(SCORES) == 256
TEMPERATURES = st.sampled_from([1e-5, 0.1, 0.6, 1.0, 1.5, 10.0])
TOP_KS = st.one_of(st.integers(1, 6), st.sampled_from([40, 50, 10**6]))
TOP_PS = st.one_of(st.sampled_from([0.0, 0.1, 0.25, 0.5, 0.9, 0.999, 1.0]), st.floats(0, 1))
MIN_PS = st.one_of(st.sampled_from([0.0, 0.05, 0.5, 1.0]), st.floats(0, 1))
PENALTIES = st.sampled_from([0.1, 0.5, 1.0, 1.3, 2.0, 10.0])
SETTINGS = st.fixed_dictionaries(
    {
        "temperature": TEMPERATURES,
        "top_k": st.one_of(st.just(0), TOP_KS),
        "top_p": TOP_PS,
        "min_p": MIN_PS,
        "repetition_penalty": PENALTIES,
    }
)


@st.composite
def batches(draws: st.DrawFn) -> Batch:
    """Rows of ids, of different lengths, and scores [B, V] with one above -inf in each row."""
    rows, width = draws(st.integers(1, 4)), draws(st.integers(1, 50))
    chosen = draws(st.binary(min_size=rows * width, max_size=rows * width))
    scores = SCORES[torch.tensor(list(chosen))].view(rows, width)
    scores[:, draws(st.integers(0, width - 1))].clamp_(min=-2)
    ids = draws(st.lists(st.binary(max_size=60), min_size=rows, max_size=rows))
    return [[byte % width for byte in row] for row in ids], scores


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Small tensors: on a busy machine more threads only wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def theirs(processor: LogitsProcessor | LogitsProcessorList, batch: Batch) -> Tensor:
    """Row by row: transformers wants rows of one length, and a row must not depend on the others."""
    ids, scores = batch
    alone = [processor(torch.tensor([row], dtype=torch.long), scores[i : i + 1]) for i, row in enumerate(ids)]
    return torch.cat(alone)


def kept(scores: Tensor) -> Tensor:
    return scores > -math.inf


@quick
@given(batches(), TEMPERATURES)
def test_temperature_scales_as_transformers(batch: Batch, temperature: float) -> None:
    assert torch.equal(Temperature(temperature)(*batch), theirs(TemperatureLogitsWarper(temperature), batch))


@quick
@given(batches(), TOP_KS)
def test_top_k_keeps_what_transformers_keeps(batch: Batch, k: int) -> None:
    assert torch.equal(TopK(k)(*batch), theirs(TopKLogitsWarper(k), batch))


@quick
@given(batches(), TOP_PS)
def test_top_p_keeps_what_transformers_keeps(batch: Batch, p: float) -> None:
    assert torch.equal(TopP(p)(*batch), theirs(TopPLogitsWarper(p), batch))


@quick
@given(batches(), MIN_PS)
def test_min_p_keeps_what_transformers_keeps(batch: Batch, p: float) -> None:
    assert torch.equal(MinP(p)(*batch), theirs(MinPLogitsWarper(p), batch))


@quick
@given(batches(), PENALTIES)
def test_the_repetition_penalty_is_transformers(batch: Batch, penalty: float) -> None:
    assert torch.equal(RepetitionPenalty(penalty)(*batch), theirs(RepetitionPenaltyLogitsProcessor(penalty), batch))


# Whole vocabularies, and scores as a bfloat16 model has them: there many tokens are equal, at the edge too.
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("width", [3200, 32000])
@pytest.mark.parametrize("p", [0.0, 0.05, 0.5, 0.9, 0.99, 0.9999])
def test_top_p_keeps_what_transformers_keeps_of_a_whole_vocabulary(p: float, width: int, dtype: torch.dtype) -> None:
    scores = (torch.randn(6, width, generator=torch.Generator().manual_seed(width)) * 3).to(dtype).float()
    batch: Batch = ([[]] * 6, scores)
    assert torch.equal(TopP(p)(*batch), theirs(TopPLogitsWarper(p), batch))


def test_top_p_cuts_where_transformers_cuts_to_the_last_bit() -> None:
    """1 - p next to the mass of the least likely tokens: how a sum is rounded decides."""
    generator = torch.Generator().manual_seed(3)
    for _ in range(100):
        scores = torch.randn(1, 1000, generator=generator) * 3
        mass = float(scores.sort().values.softmax(-1).cumsum(-1)[0, 950])
        for p in (1 - mass, 1 - mass * (1 - 2**-24), 1 - mass * (1 + 2**-23)):
            assert torch.equal(TopP(p)([[]], scores), theirs(TopPLogitsWarper(p), ([[]], scores)))


@pytest.fixture(scope="module")
def hugging_face() -> LlamaForCausalLM:
    """Only asked which processors it would use, and in which order."""
    return LlamaForCausalLM(
        LlamaConfig(vocab_size=8, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2)
    )


def their_list(model: LlamaForCausalLM, asked: dict[str, Any], sampling: bool = True) -> LogitsProcessorList:
    config = GenerationConfig(**{**NOTHING, **asked}, do_sample=sampling)
    return model._get_logits_processor(config, input_ids_seq_length=1)


TWINS: dict[type, type] = {
    RepetitionPenalty: RepetitionPenaltyLogitsProcessor,
    Temperature: TemperatureLogitsWarper,
    TopK: TopKLogitsWarper,
    TopP: TopPLogitsWarper,
    MinP: MinPLogitsWarper,
}
ALL = {"temperature": 0.7, "top_k": 20, "top_p": 0.8, "min_p": 0.1, "repetition_penalty": 1.2}


def test_the_order_is_the_one_in_which_transformers_builds_its_list(hugging_face: LlamaForCausalLM) -> None:
    ours = processors_of(**ALL, sampling=True)
    assert [TWINS[type(one)] for one in ours] == [type(one) for one in their_list(hugging_face, ALL)]
    assert len(ours) == 5


def test_without_sampling_only_the_repetition_penalty_is_left_as_in_transformers(
    hugging_face: LlamaForCausalLM,
) -> None:
    assert processors_of(**ALL, sampling=False) == [RepetitionPenalty(1.2)]
    assert [type(one) for one in their_list(hugging_face, ALL, sampling=False)] == [RepetitionPenaltyLogitsProcessor]


@pytest.mark.parametrize("sampling", [True, False])
def test_what_would_do_nothing_is_left_out(sampling: bool) -> None:
    assert processors_of(**NOTHING, sampling=sampling) == []


@pytest.mark.parametrize("name", ALL)
def test_each_setting_alone_asks_for_its_processor(name: str) -> None:
    expected: dict[str, Processor] = {
        "temperature": Temperature(0.7),
        "top_k": TopK(20),
        "top_p": TopP(0.8),
        "min_p": MinP(0.1),
        "repetition_penalty": RepetitionPenalty(1.2),
    }
    assert processors_of(**{**NOTHING, name: ALL[name]}, sampling=True) == [expected[name]]


def test_every_combination_gives_transformers_scores(hugging_face: LlamaForCausalLM) -> None:
    @settings(max_examples=300, deadline=None, database=None)
    @given(batches(), SETTINGS)
    def check(batch: Batch, asked: dict[str, Any]) -> None:
        ours = process(processors_of(**asked, sampling=True), *batch)
        assert torch.equal(ours, theirs(their_list(hugging_face, asked), batch))

    check()


@quick
@given(batches(), SETTINGS)
def test_a_token_is_left_in_each_row_and_none_comes_back(batch: Batch, asked: dict[str, Any]) -> None:
    scores = batch[1]
    for processor in processors_of(**asked, sampling=True):
        after = processor(batch[0], scores)
        assert after.shape == scores.shape
        assert after.dtype == torch.float32
        assert bool(kept(after).any(-1).all())
        assert not bool((kept(after) & ~kept(scores)).any())
        scores = after


@quick
@given(batches(), TOP_KS, TOP_PS, MIN_PS)
def test_filters_leave_the_scores_of_what_they_keep(batch: Batch, k: int, top_p: float, min_p: float) -> None:
    for processor in (TopK(k), TopP(top_p), MinP(min_p)):
        after = processor(*batch)
        assert torch.equal(after[kept(after)], batch[1][kept(after)])


@quick
@given(batches(), SETTINGS)
def test_what_comes_in_is_never_changed(batch: Batch, asked: dict[str, Any]) -> None:
    ids, scores = [list(row) for row in batch[0]], batch[1].clone()
    every: list[Processor] = [RepetitionPenalty(1.3), Temperature(0.5), TopK(2), TopP(0.5), MinP(0.5)]
    for processor in [*every, *processors_of(**asked, sampling=True)]:
        processor(*batch)
        assert torch.equal(batch[1], scores)
        assert batch[0] == ids


@quick
@given(batches(), SETTINGS)
def test_a_row_is_treated_alone_as_in_its_batch(batch: Batch, asked: dict[str, Any]) -> None:
    processors = processors_of(**asked, sampling=True)
    together = process(processors, *batch)
    alone = [process(processors, [row], batch[1][i : i + 1]) for i, row in enumerate(batch[0])]
    assert torch.equal(together, torch.cat(alone))


@quick
@given(batches(), TOP_KS)
def test_top_k_twice_is_top_k_once(batch: Batch, k: int) -> None:
    # Not so for top-p: what is left has a mass of 1 again, of which less may be enough.
    once = TopK(k)(*batch)
    assert torch.equal(TopK(k)(batch[0], once), once)


@quick
@given(batches(), TOP_KS, TOP_KS, TOP_PS, TOP_PS, MIN_PS, MIN_PS)
def test_a_wider_filter_keeps_all_that_a_narrower_one_keeps(
    batch: Batch, k: int, other_k: int, p: float, other_p: float, min_p: float, other_min_p: float
) -> None:
    pairs: list[tuple[Processor, Processor]] = [
        (TopK(min(k, other_k)), TopK(max(k, other_k))),
        (TopP(min(p, other_p)), TopP(max(p, other_p))),
        (MinP(max(min_p, other_min_p)), MinP(min(min_p, other_min_p))),
    ]
    for narrow, wide in pairs:
        assert not bool((kept(narrow(*batch)) & ~kept(wide(*batch))).any())


def scores_of(sixteenths: list[int]) -> Tensor:
    """Scores whose probabilities are these sixteenths, [1, V]; 0 of them is -inf."""
    return (torch.tensor([sixteenths]) / 16).log()


@pytest.mark.parametrize("sixteenths", [[4, 4, 4, 4], [8, 4, 2, 1, 1], [1, 2, 8, 1, 4], [16, 0, 0], [0, 8, 8, 0]])
@pytest.mark.parametrize("top_p", [0.0, 0.0625, 0.25, 0.5, 0.75, 0.9375, 0.99])
def test_top_p_keeps_the_fewest_likeliest_tokens_that_reach_it(sixteenths: list[int], top_p: float) -> None:
    after = TopP(top_p)([[]], scores_of(sixteenths))
    order = sorted(sixteenths, reverse=True)
    enough = [n for n in range(1, len(order) + 1) if Fraction(sum(order[:n]), 16) >= Fraction(top_p)]
    masses = [mass for mass, keep in zip(sixteenths, kept(after)[0].tolist(), strict=True) if keep]
    # Of equal tokens at the edge some stay: which, the rule does not say.
    assert sorted(masses, reverse=True) == order[: enough[0]]


def test_top_p_0_keeps_one_token_even_where_several_are_the_likeliest() -> None:
    assert kept(TopP(0.0)([[], []], torch.tensor([[1.0, 3.0, 2.0], [2.0, 2.0, 2.0]]))).sum(-1).tolist() == [1, 1]
    assert bool(kept(TopP(0.0)([[]], torch.tensor([[1.0, 3.0, 2.0]])))[0, 1])


def test_top_k_keeps_all_that_equal_the_last() -> None:
    scores = torch.tensor([[1.0, 3.0, 2.0, 2.0, 2.0, 0.0]])
    assert kept(TopK(2)([[]], scores)).tolist() == [[False, True, True, True, True, False]]
    # Fewer are left than k: nothing more goes.
    assert torch.equal(TopK(5)([[]], TopK(1)([[]], scores)), TopK(1)([[]], scores))


def test_min_p_1_keeps_the_likeliest_and_its_equals() -> None:
    assert kept(MinP(1.0)([[]], torch.tensor([[2.0, 5.0, 5.0, 4.9]]))).tolist() == [[False, True, True, False]]


def test_the_penalty_is_applied_once_a_token_however_often_it_stands_there() -> None:
    scores = torch.tensor([[2.0, -2.0, 0.0, 4.0], [2.0, -2.0, 0.0, 4.0], [2.0, -2.0, 0.0, 4.0]])
    after = RepetitionPenalty(2.0)([[0, 1, 0, 0, 1, 2], [3], []], scores)
    assert after.tolist() == [[1.0, -4.0, 0.0, 4.0], [2.0, -2.0, 0.0, 2.0], [2.0, -2.0, 0.0, 4.0]]


LARGE = torch.finfo(torch.float32).max


@pytest.mark.parametrize(
    ("scores", "likeliest"),
    [([0.0, LARGE, LARGE / 2, -LARGE], 1), ([-LARGE, -LARGE / 2, -LARGE], 1), ([-math.inf, -LARGE, -math.inf], 1)],
)
@pytest.mark.parametrize("temperature", [1e-5, 0.5])
def test_a_temperature_under_which_the_largest_score_overflows_leaves_the_likeliest(
    scores: list[float], likeliest: int, temperature: float
) -> None:
    after = Temperature(temperature)([[], []], torch.tensor([scores, [0.0] * len(scores)]))
    assert after.softmax(-1)[0].tolist() == [float(token == likeliest) for token in range(len(scores))]
    assert draw(after, [0.999, 0.0]).tolist() == [likeliest, 0]
    # The row beside it has nothing to do with it.
    assert after[1].tolist() == [0.0] * len(scores)


def test_a_penalty_that_overflows_leaves_probabilities_that_are_numbers() -> None:
    after = RepetitionPenalty(1e-30)([[1]], torch.tensor([[20.0, 1e10, -5.0]]))
    assert after.softmax(-1).tolist() == [[0.0, 1.0, 0.0]]
