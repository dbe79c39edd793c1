"""From logits to tokens: the nucleus of Meta and of transformers, and draws that follow their probabilities."""

import math
from collections import Counter
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import TopPLogitsWarper

from model.sampling import choose, filter_top_p, sample_top_p, uniform

quick = settings(max_examples=150, deadline=None, database=None)
# Sixteenths add up exactly in float32, so that "the mass before it" has no rounding.
SIXTEENTHS = [[8, 4, 2, 1, 1], [1, 2, 8, 1, 4], [4, 4, 4, 4], [16, 0, 0], [3, 5, 5, 3], [0, 8, 8, 0]]


def meta_nucleus(sixteenths: list[int], p: Fraction) -> set[tuple[int, int]]:
    """(place in the order, mass) of what Meta's sample_top_p may draw, in exact arithmetic."""
    order = sorted(sixteenths, reverse=True)
    before = [sum(order[:place]) for place in range(len(order))]
    return {(place, mass) for place, mass in enumerate(order) if Fraction(before[place], 16) <= p and mass > 0}


@pytest.mark.parametrize("sixteenths", SIXTEENTHS)
@pytest.mark.parametrize("p", [0.0, 0.25, 0.5, 0.625, 0.75, 1.0])
def test_sample_top_p_draws_exactly_the_tokens_of_metas_nucleus(sixteenths: list[int], p: float) -> None:
    torch.manual_seed(7)
    probs = torch.tensor([sixteenths] * 400) / 16
    drawn = sample_top_p(probs, p)
    assert drawn.shape == (400, 1)
    masses = Counter(sixteenths[token] for token in set(drawn.flatten().tolist()))
    # 400 draws miss a token of a sixteenth once in 1e11 times. Of equal tokens at the edge any may stay.
    assert masses == Counter(mass for _, mass in meta_nucleus(sixteenths, Fraction(p)))


def test_sample_top_p_with_p_0_is_greedy_and_with_p_1_draws_everything_that_has_mass() -> None:
    torch.manual_seed(1)
    probs = torch.tensor([[0.125, 0.5, 0.25, 0.125, 0.0]] * 500)
    assert set(sample_top_p(probs, 0).flatten().tolist()) == {1}
    assert set(sample_top_p(probs, 1).flatten().tolist()) == {0, 1, 2, 3}


def test_sample_top_p_follows_the_probabilities_inside_the_nucleus() -> None:
    torch.manual_seed(3)
    drawn = sample_top_p(torch.tensor([[0.1, 0.5, 0.3, 0.1]] * 8000), 0.6).flatten().tolist()
    share = drawn.count(1) / 8000
    assert set(drawn) == {1, 2}
    # 0.5 of 0.8; four standard deviations of 8000 draws are 4 * sqrt(0.625 * 0.375 / 8000) = 0.022.
    assert share == pytest.approx(0.625, abs=0.022)


def test_sample_top_p_takes_one_row_or_a_batch_of_rows() -> None:
    assert sample_top_p(torch.full((4,), 0.25), 0.9).shape == (1,)
    assert sample_top_p(torch.full((3, 4), 0.25), 0.9).shape == (3, 1)


def check_against_transformers(logits: Tensor, top_p: float) -> None:
    """The kept masses are those of TopPLogitsWarper, but for tokens on the edge to within rounding."""
    probs, _ = torch.sort(logits.softmax(-1), descending=True)
    ours = filter_top_p(probs, top_p)
    theirs = TopPLogitsWarper(top_p)(torch.empty(0), logits.unsqueeze(0))[0]
    kept = torch.sort(logits.softmax(-1).masked_fill(theirs == -math.inf, 0), descending=True).values
    before = probs.double().cumsum(-1) - probs.double()
    # They add up from the least likely token, we from the likeliest: V roundings of 2^-24 each.
    clear = (before - top_p).abs() > len(logits) * 2.0**-24
    assert torch.equal(ours[clear], kept[clear])


@quick
@given(
    st.lists(st.floats(-30, 30, width=32), min_size=2, max_size=40),
    st.sampled_from([0.01, 0.1, 0.3, 0.5, 0.6, 0.9, 0.95, 0.999]),
)
def test_filter_top_p_keeps_what_transformers_keeps(logits: list[float], top_p: float) -> None:
    check_against_transformers(torch.tensor(logits), top_p)


@pytest.mark.parametrize("top_p", [0.05, 0.5, 0.9, 0.99])
def test_filter_top_p_keeps_what_transformers_keeps_of_a_whole_vocabulary(top_p: float) -> None:
    for seed in range(5):
        check_against_transformers(torch.randn(3200, generator=torch.Generator().manual_seed(seed)) * 3, top_p)


@pytest.mark.parametrize("sixteenths", [[16, 0, 0], [8, 4, 2, 1, 1], [4, 4, 4, 4]])
def test_filter_top_p_keeps_the_fewest_tokens_that_reach_the_mass(sixteenths: list[int]) -> None:
    probs = torch.tensor(sixteenths) / 16
    for top_p in (0.0625, 0.25, 0.5, 0.75, 1.0):
        kept = int((filter_top_p(probs, top_p) > 0).sum())
        reached = [count for count in range(1, len(sixteenths) + 1) if sum(sixteenths[:count]) / 16 >= top_p]
        assert kept == reached[0]


def test_filter_top_p_keeps_the_likeliest_token_whatever_is_asked() -> None:
    probs = torch.tensor([[0.5, 0.5], [0.75, 0.25]])
    assert torch.equal(filter_top_p(probs, 0.0), torch.tensor([[0.5, 0.0], [0.75, 0.0]]))


LOGITS = torch.tensor([[1.0, 0.0, -1.0, 2.0, 0.5, -math.inf, 0.0, 1.5]])


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_draws_follow_the_softmax_by_a_chi_square_test(temperature: float) -> None:
    draws = [uniform(1, 0, step) for step in range(6000)]
    counts = Counter(choose(LOGITS.expand(6000, -1), temperature, 1.0, draws).tolist())
    expected = (LOGITS[0].double() / temperature).softmax(-1) * 6000
    assert counts[5] == 0
    chi_square = sum((counts[token] - e) ** 2 / e for token, e in enumerate(expected.tolist()) if e > 0)
    # 6 degrees of freedom: above 22.5 once in a thousand times, and the numbers are always the same.
    assert chi_square < 22.5


def test_draws_inside_a_nucleus_follow_its_probabilities_by_a_chi_square_test() -> None:
    draws = [uniform(2, 0, step) for step in range(6000)]
    counts = Counter(choose(LOGITS.expand(6000, -1), 1.0, 0.8, draws).tolist())
    # The logits 2, 1.5 and 1 have masses of 0.40, 0.24 and 0.15, which is 0.78; with 0.5's 0.09 it is above 0.8.
    kept = torch.tensor([3, 7, 0, 4])
    expected = LOGITS[0, kept].double().softmax(-1) * 6000
    assert set(counts) == set(kept.tolist())
    chi_square = sum((counts[int(t)] - e) ** 2 / e for t, e in zip(kept, expected.tolist(), strict=True))
    # 3 degrees of freedom: above 16.3 once in a thousand times.
    assert chi_square < 16.3


@quick
@given(
    st.lists(st.one_of(st.floats(-20, 20, width=32), st.just(-math.inf)), min_size=1, max_size=12),
    st.sampled_from([0.1, 0.6, 1.0, 10.0]),
    st.sampled_from([0.1, 0.5, 0.9, 1.0]),
    st.sampled_from([0.0, 2.0**-53, 0.25, 0.5, 0.999, 1 - 2.0**-53]),
)
def test_no_draw_of_0_to_just_below_1_ever_takes_a_token_without_mass(
    logits: list[float], temperature: float, top_p: float, draw: float
) -> None:
    logits = [*logits, 0.0]
    token = int(choose(torch.tensor([logits]), temperature, top_p, [draw]))
    assert logits[token] > -math.inf
    assert float((torch.tensor(logits) / temperature).softmax(-1)[token]) > 0


def test_a_higher_draw_never_takes_a_likelier_token() -> None:
    draws = torch.linspace(0, 1, 401)[:-1].tolist()
    tokens = choose(LOGITS.expand(400, -1), 1.0, 1.0, draws)
    assert bool((LOGITS[0, tokens].diff() <= 0).all())
    assert tokens[0] == 3


def test_temperatures_below_a_hundred_thousandth_take_the_likeliest_and_of_equals_the_first() -> None:
    logits = torch.tensor([[0.0, 3.0, 3.0 - 1e-6, 1.0], [2.0, 1.0, 2.0, 0.0]])
    for temperature in (0.0, 9e-6):
        for draw in (0.0, 0.999):
            assert choose(logits, temperature, 0.9, [draw, draw]).tolist() == [1, 0]


def test_a_row_draws_the_same_token_alone_and_in_any_batch() -> None:
    logits = torch.randn(6, 500, generator=torch.Generator().manual_seed(5))
    draws = [uniform(9, prompt, 3) for prompt in range(6)]
    together = choose(logits, 0.8, 0.95, draws).tolist()
    alone = [int(choose(logits[row : row + 1], 0.8, 0.95, [draws[row]])) for row in range(6)]
    backwards = choose(logits.flip(0), 0.8, 0.95, draws[::-1]).tolist()
    assert together == alone == backwards[::-1]


def test_equal_tokens_are_drawn_in_the_order_of_their_ids() -> None:
    draws = [place / 8 + 1 / 16 for place in range(8)]
    assert choose(torch.zeros(8, 8), 1.0, 1.0, draws).tolist() == list(range(8))


@quick
@given(st.integers(0, 2**63 - 1), st.integers(0, 10**6), st.integers(0, 10**6))
def test_random_numbers_are_at_least_0_below_1_and_known_from_seed_prompt_and_step(
    seed: int, prompt: int, step: int
) -> None:
    number = uniform(seed, prompt, step)
    assert 0 <= number < 1
    assert number == uniform(seed, prompt, step)


def test_random_numbers_are_even_and_differ_by_seed_prompt_and_step() -> None:
    numbers = sorted(uniform(s, p, t) for s in range(10) for p in range(10) for t in range(40))
    assert len(set(numbers)) == 4000
    # Kolmogorov-Smirnov: above 1.95 / sqrt(n) once in a thousand times.
    assert max(abs(number - place / 4000) for place, number in enumerate(numbers)) < 1.95 / math.sqrt(4000)
    # Numbers that stand side by side in any of the three are not alike: 4 / sqrt(n).
    for first, second in [((0, 0, 0), (1, 0, 0)), ((0, 0, 0), (0, 1, 0)), ((0, 0, 0), (0, 0, 1))]:
        pairs = torch.tensor(
            [
                [
                    uniform(first[0] + i, first[1] + 7, first[2] + 3),
                    uniform(second[0] + i, second[1] + 7, second[2] + 3),
                ]
                for i in range(0, 4000, 2)
            ]
        )
        assert abs(float(torch.corrcoef(pairs.T)[0, 1])) < 4 / math.sqrt(2000)


def test_no_two_of_seed_prompt_and_step_run_into_each_other() -> None:
    assert uniform(1, 11, 1) != uniform(11, 1, 1) != uniform(1, 1, 11)
