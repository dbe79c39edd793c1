"""From scores to tokens: draws that follow the probabilities, random numbers, and Meta's nucleus.

All random numbers have fixed seeds, so every test says the same each time. Chi-square tests ask that the statistic is
not above its quantile of 0.999: with other seeds right code would fail once in a thousand times.
"""

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from fractions import Fraction
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from model.generation.processors import process, processors_of
from model.generation.sampling import draw, sample_top_p, uniform
from model.generation.settings import GREEDY_BELOW, Settings

quick = settings(max_examples=150, deadline=None, database=None)
# The 0.999 quantiles of chi-square with 1, 2, ... 7 degrees of freedom (Abramowitz and Stegun, table 26.8).
QUANTILES = [10.828, 13.816, 16.266, 18.467, 20.515, 22.458, 24.322]


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Small tensors: on a busy machine more threads only wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def assert_follows(drawn: Sequence[int], expected: dict[int, float]) -> None:
    """By a chi-square test, that tokens were drawn with these probabilities, and no others were."""
    counts = Counter(drawn)
    assert set(counts) == set(expected)
    assert sum(expected.values()) == pytest.approx(1)
    in_all = {token: share * len(drawn) for token, share in expected.items()}
    assert min(in_all.values()) >= 5, "too few draws for the test to mean anything"
    statistic = sum((counts[token] - count) ** 2 / count for token, count in in_all.items())
    assert statistic < QUANTILES[len(expected) - 2]


# Meta's sample_top_p. Sixteenths add up exactly in float32, so that "the mass before it" has no rounding.
SIXTEENTHS = [[8, 4, 2, 1, 1], [1, 2, 8, 1, 4], [4, 4, 4, 4], [16, 0, 0], [3, 5, 5, 3], [0, 8, 8, 0]]


def metas_nucleus(sixteenths: list[int], p: float) -> list[int]:
    """The masses that Meta's sample_top_p draws from, the largest first, in exact arithmetic."""
    order = sorted(sixteenths, reverse=True)
    before = [Fraction(sum(order[:place]), 16) for place in range(len(order))]
    return [mass for mass, passed in zip(order, before, strict=True) if passed <= Fraction(p) and mass > 0]


@pytest.mark.parametrize("sixteenths", SIXTEENTHS)
@pytest.mark.parametrize("p", [0.0, 0.25, 0.5, 0.625, 0.75, 1.0])
def test_sample_top_p_draws_exactly_the_tokens_of_metas_nucleus(sixteenths: list[int], p: float) -> None:
    torch.manual_seed(7)
    probs = torch.tensor([sixteenths] * 400) / 16
    drawn = sample_top_p(probs, p)
    assert drawn.shape == (400, 1)
    # 400 draws miss a token of a sixteenth once in 1e11 times. Of equal tokens at the edge any may stay.
    masses = Counter(sixteenths[token] for token in set(drawn.flatten().tolist()))
    assert masses == Counter(metas_nucleus(sixteenths, p))


@pytest.mark.parametrize("sixteenths", [[8, 4, 2, 1, 1], [1, 2, 8, 1, 4], [4, 4, 4, 4], [3, 5, 5, 3], [0, 8, 8, 0]])
@pytest.mark.parametrize("p", [0.25, 0.5, 0.75, 1.0])
def test_sample_top_p_follows_metas_rule_by_a_chi_square_test(sixteenths: list[int], p: float) -> None:
    torch.manual_seed(11)
    drawn = sample_top_p(torch.tensor([sixteenths] * 6000) / 16, p).flatten().tolist()
    nucleus = metas_nucleus(sixteenths, p)
    # Of equal tokens at the edge any may stay: those that were drawn, if they are as many as the rule says.
    tokens = sorted(set(drawn), key=lambda token: -sixteenths[token])
    assert [sixteenths[token] for token in tokens] == nucleus
    if len(nucleus) > 1:
        assert_follows(drawn, {token: sixteenths[token] / sum(nucleus) for token in tokens})


def test_sample_top_p_with_p_0_is_greedy_and_with_p_1_draws_everything_that_has_mass() -> None:
    torch.manual_seed(1)
    probs = torch.tensor([[0.125, 0.5, 0.25, 0.125, 0.0]] * 500)
    assert set(sample_top_p(probs, 0).flatten().tolist()) == {1}
    assert set(sample_top_p(probs, 1).flatten().tolist()) == {0, 1, 2, 3}


def test_sample_top_p_keeps_a_token_more_than_transformers_where_the_mass_before_it_is_p() -> None:
    torch.manual_seed(2)
    probs = torch.tensor([[0.25, 0.25, 0.25, 0.25]] * 400)
    assert len(set(sample_top_p(probs, 0.5).flatten().tolist())) == 3
    top_p = processors_of(**{**NOTHING, "top_p": 0.5}, sampling=True)
    assert int((process(top_p, [[]], probs[:1].log()) > -math.inf).sum()) == 2


def test_sample_top_p_takes_one_row_or_a_batch_of_rows_and_does_not_change_them() -> None:
    assert sample_top_p(torch.full((4,), 0.25), 0.9).shape == (1,)
    probs = torch.tensor([[0.5, 0.3, 0.2], [0.1, 0.1, 0.8], [0.0, 1.0, 0.0]])
    before = probs.clone()
    assert sample_top_p(probs, 0.4).shape == (3, 1)
    assert torch.equal(probs, before)


# Draws.
NOTHING: dict[str, Any] = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "repetition_penalty": 1.0}
LOGITS = [1.0, 0.0, -1.0, 2.0, 0.5, -math.inf, 0.0, 1.5]
ROW = torch.tensor([LOGITS])


def shares(logits: dict[int, float]) -> dict[int, float]:
    """The softmax over some tokens, by math."""
    powers = {token: math.exp(logit) for token, logit in logits.items()}
    return {token: power / sum(powers.values()) for token, power in powers.items()}


# What is asked for, and the tokens and scores that are left of LOGITS, worked out by hand: its masses are 0.15, 0.05,
# 0.02, 0.40, 0.09, 0, 0.05 and 0.24; the row holds tokens 3 and 2.
FILTERED: list[tuple[dict[str, Any], dict[int, float]]] = [
    ({}, {0: 1, 1: 0, 2: -1, 3: 2, 4: 0.5, 6: 0, 7: 1.5}),
    ({"temperature": 0.5}, {0: 2, 1: 0, 2: -2, 3: 4, 4: 1, 6: 0, 7: 3}),
    ({"temperature": 2.0}, {0: 0.5, 1: 0, 2: -0.5, 3: 1, 4: 0.25, 6: 0, 7: 0.75}),
    ({"top_p": 0.8}, {0: 1, 3: 2, 4: 0.5, 7: 1.5}),
    ({"top_k": 3}, {0: 1, 3: 2, 7: 1.5}),
    ({"top_k": 5}, {0: 1, 1: 0, 3: 2, 4: 0.5, 6: 0, 7: 1.5}),
    ({"min_p": 0.3}, {0: 1, 3: 2, 7: 1.5}),
    ({"repetition_penalty": 2.0}, {0: 1, 1: 0, 2: -2, 3: 1, 4: 0.5, 6: 0, 7: 1.5}),
    ({"temperature": 0.5, "top_k": 4, "top_p": 0.9, "repetition_penalty": 2.0}, {0: 2, 3: 2, 7: 3}),
]


@pytest.mark.parametrize(("asked", "left"), FILTERED, ids=[str(asked) for asked, _ in FILTERED])
def test_draws_follow_what_the_processors_leave_by_a_chi_square_test(
    asked: dict[str, Any], left: dict[int, float]
) -> None:
    scores = process(processors_of(**{**NOTHING, **asked}, sampling=True), [[3, 2, 3]], ROW)
    drawn = draw(scores.expand(8000, -1), [uniform(1, 0, step) for step in range(8000)]).tolist()
    assert_follows(drawn, shares(left))


@pytest.mark.parametrize("stream", ["prompt", "step", "sequence"])
def test_draws_of_every_kind_of_stream_follow_the_softmax_by_a_chi_square_test(stream: str) -> None:
    draws = [uniform(4, **{"prompt": 2, "step": 5, "sequence": 1, stream: number}) for number in range(8000)]
    assert_follows(draw(ROW.expand(8000, -1), draws).tolist(), shares(FILTERED[0][1]))


def drawn_by_counting(scores: Tensor, number: float) -> tuple[int, float]:
    """The token in whose share of the mass the number lies, by Python; and how close it is to the share's ends."""
    masses = [math.exp(score - float(scores.max())) for score in scores.tolist()]
    order = sorted(range(len(masses)), key=lambda token: (-masses[token], token))
    ends = [math.fsum(masses[token] for token in order[: place + 1]) for place in range(len(order))]
    mark = number * ends[-1]
    place = next(place for place, end in enumerate(ends) if end > mark)
    return order[place], min(abs(end - mark) for end in [*ends, 0.0]) / ends[-1]


@quick
@given(
    st.lists(st.lists(st.integers(-20, 20), min_size=12, max_size=12), min_size=1, max_size=4),
    st.lists(st.floats(0, 1, exclude_max=True), min_size=4, max_size=4),
)
def test_a_number_draws_the_token_in_whose_share_of_the_mass_it_lies(
    rows: list[list[int]], numbers: list[float]
) -> None:
    # Thirds have no exact float32; -20 to -18 stand for filtered tokens.
    scores = torch.tensor([[one / 3 if one > -18 else -math.inf for one in row] for row in rows])
    scores[:, 7].clamp_(min=-1.0)
    drawn = draw(scores, numbers[: len(rows)]).tolist()
    for row, token, number in zip(scores, drawn, numbers, strict=False):
        expected, gap = drawn_by_counting(row, number)
        # float32 probabilities, 12 of them, are off by 1e-6 at the most.
        assert token == expected or gap < 1e-6


def drawn_by_sorting(scores: Tensor, draws: list[float]) -> Tensor:
    """As `draw`, but with a stable sort of the ids, which takes ten times as long."""
    probs, ids = torch.sort(scores.softmax(-1), descending=True, stable=True)
    edges = probs.double().cumsum(-1)
    marks = torch.tensor(draws, dtype=torch.float64).unsqueeze(-1) * edges[:, -1:]
    return ids.gather(-1, torch.searchsorted(edges, marks, right=True)).squeeze(-1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("top_p", [0.9, 1.0])
def test_ids_are_found_without_sorting_them_in_a_whole_vocabulary(top_p: float, dtype: torch.dtype) -> None:
    """Scores of a bfloat16 model are of a few hundred values, so that many tokens are equal."""
    scores = (torch.randn(64, 32000, generator=torch.Generator().manual_seed(8)) * 3).to(dtype).float()
    scores = process(processors_of(**{**NOTHING, "top_p": top_p}, sampling=True), [[]] * 64, scores)
    draws = [uniform(6, row, 0) for row in range(64)]
    assert torch.equal(draw(scores, draws), drawn_by_sorting(scores, draws))


@quick
@given(
    st.lists(st.one_of(st.floats(-20, 20, width=32), st.just(-math.inf)), min_size=0, max_size=12),
    st.fixed_dictionaries(
        {
            "temperature": st.sampled_from([1e-5, 0.1, 0.6, 1.0, 10.0]),
            "top_k": st.sampled_from([0, 1, 3]),
            "top_p": st.sampled_from([0.0, 0.1, 0.5, 0.9, 1.0]),
            "min_p": st.sampled_from([0.0, 0.1, 1.0]),
            "repetition_penalty": st.sampled_from([0.5, 1.0, 2.0]),
        }
    ),
    st.sampled_from([0.0, 2.0**-53, 0.25, 0.5, 0.999, 1 - 2.0**-53]),
)
def test_no_draw_of_0_to_just_below_1_ever_takes_a_token_without_mass(
    logits: list[float], asked: dict[str, Any], number: float
) -> None:
    logits = [*logits, 0.0]
    scores = process(processors_of(**asked, sampling=True), [[0]], torch.tensor([logits]))
    token = int(draw(scores, [number]))
    assert float(scores[0, token]) > -math.inf
    assert float(scores.softmax(-1)[0, token]) > 0


@pytest.mark.parametrize("number", [0.0, 0.5, 1 - 2.0**-53])
def test_a_row_whose_mass_is_all_in_one_token_gives_it(number: float) -> None:
    rows = torch.tensor([[0.0, 200.0, 0.0], [-math.inf, -math.inf, -1e30], [-1e30, 1e30, -math.inf]])
    assert draw(rows, [number] * 3).tolist() == [1, 2, 1]
    assert draw(torch.tensor([[-3.0]]), [number]).tolist() == [0]


def test_a_higher_draw_never_takes_a_likelier_token() -> None:
    draws = torch.linspace(0, 1, 401)[:-1].tolist()
    tokens = draw(ROW.expand(400, -1), draws)
    assert bool((ROW[0, tokens].diff() <= 0).all())
    assert tokens[0] == 3


def test_equal_tokens_are_drawn_in_the_order_of_their_ids() -> None:
    draws = [place / 8 + 1 / 16 for place in range(8)]
    assert draw(torch.zeros(8, 8), draws).tolist() == list(range(8))
    # A share of the mass has its lower end and not its upper.
    assert draw(torch.zeros(8, 8), [place / 8 for place in range(8)]).tolist() == list(range(8))
    # Two of 4/10 each before two of 1/10 each.
    scores = torch.tensor([[1.0, 4.0, 1.0, 4.0]]).log().expand(4, -1)
    assert draw(scores, [0.2, 0.6, 0.85, 0.95]).tolist() == [1, 3, 0, 2]


def test_a_draw_does_not_change_its_scores() -> None:
    scores = torch.randn(3, 40, generator=torch.Generator().manual_seed(2))
    before = scores.clone()
    draw(scores, [0.1, 0.5, 0.9])
    assert torch.equal(scores, before)


def test_a_row_draws_the_same_token_alone_and_in_any_batch() -> None:
    logits = torch.randn(6, 500, generator=torch.Generator().manual_seed(5))
    scores = process(processors_of(**{**NOTHING, "temperature": 0.8, "top_p": 0.95}, sampling=True), [[]] * 6, logits)
    draws = [uniform(9, prompt, 3) for prompt in range(6)]
    together = draw(scores, draws).tolist()
    alone = [int(draw(scores[row : row + 1], [draws[row]])) for row in range(6)]
    backwards = draw(scores.flip(0), draws[::-1]).tolist()
    assert together == alone == backwards[::-1]


# Temperatures next to 0.


def test_temperatures_below_a_hundred_thousandth_are_greedy() -> None:
    def greedy(temperature: float) -> bool:
        return Settings(max_gen_len=1, max_seq_len=2, temperature=temperature).greedy

    assert [greedy(temperature) for temperature in (0.0, 1e-30, 9.99e-6)] == [True] * 3
    assert [greedy(temperature) for temperature in (GREEDY_BELOW, 1e-4, 1.0)] == [False] * 3


def test_the_lowest_temperature_that_draws_takes_the_likeliest_of_logits_a_thousandth_apart() -> None:
    # A thousandth over 1e-5 is a hundred: the other has e^-100.
    logits = torch.tensor([[0.0, 3.0, 2.999, 1.0]])
    processors = processors_of(**{**NOTHING, "temperature": GREEDY_BELOW}, sampling=True)
    for number in (0.0, 0.5, 1 - 2.0**-53):
        assert draw(process(processors, [[]], logits), [number]).tolist() == [1]


# Random numbers.


def test_the_first_answers_numbers_are_pinned() -> None:
    """A saved seed goes on giving the text that it gave. 53 bits of BLAKE2b, worked out with b2sum."""
    assert [uniform(1, 0, 0), uniform(1, 0, 1), uniform(1, 7, 0), uniform(5, 3, 250)] == [
        0.9910251519435451,
        0.40769024523862796,
        0.2200919951860244,
        0.9048957261183447,
    ]
    assert uniform(2**63 - 1, 10**6, 10**6) == 0.6952271195844176
    assert uniform(1, 7, 0, 0) == uniform(1, 7, 0)


@quick
@given(st.integers(0, 2**63 - 1), st.integers(0, 10**6), st.integers(0, 10**6), st.integers(0, 100))
def test_random_numbers_are_at_least_0_below_1_and_known_from_what_they_are_for(
    seed: int, prompt: int, step: int, sequence: int
) -> None:
    number = uniform(seed, prompt, step, sequence)
    assert 0 <= number < 1
    assert number == uniform(seed, prompt, step, sequence)


FOUR = ["seed", "prompt", "step", "sequence"]


def test_random_numbers_are_even_and_all_differ() -> None:
    numbers = sorted(uniform(s, p, t, q) for s in range(5) for p in range(5) for t in range(40) for q in range(4))
    assert len(set(numbers)) == 4000
    # Kolmogorov-Smirnov: above 1.95 / sqrt(n) once in a thousand times.
    assert max(abs(number - place / 4000) for place, number in enumerate(numbers)) < 1.95 / math.sqrt(4000)


@pytest.mark.parametrize("moved", FOUR)
@pytest.mark.parametrize("along", FOUR)
def test_numbers_side_by_side_are_not_alike(moved: str, along: str) -> None:
    """Two streams that differ by 1 in one of the four, read along each of the four."""
    start = {"seed": 3, "prompt": 7, "step": 3, "sequence": 0}
    pairs = []
    # Every other number, so that no number is in two pairs where both move along the same.
    for i in range(0, 4000, 2):
        first = {**start, along: start[along] + i}
        pairs.append([uniform(**first), uniform(**{**first, moved: first[moved] + 1})])
    # Four standard deviations.
    assert abs(float(torch.corrcoef(torch.tensor(pairs).T)[0, 1])) < 4 / math.sqrt(2000)


def test_no_two_of_seed_prompt_step_and_sequence_run_into_each_other() -> None:
    numbers = {
        uniform(*words) for words in [(1, 11, 1), (11, 1, 1), (1, 1, 11), (1, 1, 1, 1), (1, 1, 11, 1), (1, 11, 1, 1)]
    }
    assert len(numbers) == 6
