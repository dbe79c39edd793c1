"""`verify`: answers of several sizes compared, and what is said of them."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from launcher.checkpoints.verification import Greedy, as_text, compare
from launcher.checkpoints.verifying import read_answers, verification_of
from launcher.settings.options import VerifyOptions
from model.tokenizers.opening import open_tokenizer

ROOT = Path(__file__).resolve().parents[4]
TOKENIZER = open_tokenizer(ROOT / "configs" / "demo" / "tokenizer.model")
END = 2
Step = tuple[int, float, dict[int, float]]


def greedy(*steps: Step, prompt: str = "A cat", end_ids: Sequence[int] = (END,)) -> Greedy:
    """An answer as `complete` writes it: of each step the token, its log-probability, and the likeliest."""
    line = {
        "index": 0,
        "prompt": prompt,
        "generation": "",
        "prompt_tokens": [1, 50],
        "tokens": [token for token, _, _ in steps],
        "logprobs": [value for _, value, _ in steps],
        "finish_reason": "length",
        "top_logprobs": [{str(token): value for token, value in likeliest.items()} for _, _, likeliest in steps],
    }
    return Greedy.of(json.loads(json.dumps(line)), end_ids)


def sure(token: int, value: float = -0.5) -> Step:
    return token, value, {token: value, 7: -2.0}


def text_of(before: Sequence[int], token: int) -> str:
    return f"{token} behind {list(before)}"


def test_equal_answers_agree_and_their_logprobs_are_compared() -> None:
    one, two = greedy(sure(11, -0.5), sure(12, -0.25)), greedy(sure(11, -0.5), sure(12, -0.3125))
    found = compare(1, [one, one], 2, [one, two], text_of)
    assert (found.mp, found.agree, found.same_tokens, found.differences) == (2, True, 4, [])
    assert found.largest_logprob_difference == 0.0625


def test_the_first_token_that_differs_is_told_with_each_sizes_lead() -> None:
    before, behind = sure(11), sure(13, -9.0)
    one = greedy(before, (20, -0.75, {20: -0.75, 21: -0.875, 5: -4.0}), behind)
    two = greedy(before, (21, -0.5, {21: -0.5, 5: -3.0, 6: -3.5}), sure(14))
    found = compare(2, [one], 4, [two], text_of)
    assert not found.agree
    assert found.same_tokens == 1
    # What stands behind the first difference has another context, and is not compared.
    assert found.largest_logprob_difference == 0
    (difference,) = found.differences
    assert (difference.index, difference.prompt, difference.place) == (0, "A cat", 1)
    mine, theirs = difference.reference, difference.other
    assert (mine.mp, mine.token, mine.text) == (2, 20, "20 behind [1, 50, 11]")
    assert (theirs.mp, theirs.token, theirs.text) == (4, 21, "21 behind [1, 50, 11]")
    assert (mine.lead, mine.lead_is_more) == (0.125, False)
    # 20 is not among the three that are known at MP 4: it is behind the last of them.
    assert (theirs.lead, theirs.lead_is_more) == (3.0, True)


def test_an_end_token_is_compared_and_nothing_behind_it() -> None:
    ended = greedy(sure(11), (END, -0.5, {END: -0.5, 30: -0.75}), sure(31))
    other_behind = greedy(sure(11), (END, -0.5, {END: -0.5, 30: -0.75}), sure(32))
    assert ended.tokens == [11, END]
    assert len(ended.logprobs) == len(ended.likeliest) == 2
    assert compare(1, [ended], 2, [other_behind], text_of).agree
    going_on = greedy(sure(11), (30, -0.5, {30: -0.5, END: -0.75}), sure(31))
    (difference,) = compare(1, [ended], 2, [going_on], text_of).differences
    assert (difference.place, difference.reference.token, difference.other.token) == (1, END, 30)
    assert difference.reference.lead == difference.other.lead == 0.25


@settings(max_examples=100, deadline=None, database=None)
@given(st.lists(st.tuples(st.integers(10, 12), st.integers(10, 12)), min_size=1, max_size=12))
def test_the_place_is_the_first_that_differs(pairs: list[tuple[int, int]]) -> None:
    one, two = (greedy(*(sure(pair[side]) for pair in pairs)) for side in (0, 1))
    found = compare(1, [one], 2, [two], text_of)
    places = [place for place, (mine, theirs) in enumerate(pairs) if mine != theirs]
    assert [difference.place for difference in found.differences] == places[:1]
    assert found.same_tokens == (places[0] if places else len(pairs))


def test_answers_are_read_line_by_line_whatever_letters_are_in_them(tmp_path: Path) -> None:
    line = {"prompt": "a\u2028b\x85c", "prompt_tokens": [1], "tokens": [5], "logprobs": [-1.0], "top_logprobs": [{}]}
    path = tmp_path / "mp1.jsonl"
    path.write_text(f"{json.dumps(line, ensure_ascii=False)}\n" * 2, encoding="utf-8")
    assert [answer.prompt for answer in read_answers(path, {END})] == ["a\u2028b\x85c"] * 2


def verified(one: Greedy, two: Greedy, **options: Any) -> Any:
    asked = VerifyOptions(mp=[1, 2], **options)
    return verification_of("ckpt", asked, {1: 1.0, 2: 2.0}, {1: [one], 2: [two]}, TOKENIZER)


def test_the_exact_mode_demands_every_bit_and_others_the_tokens() -> None:
    one, two = greedy(sure(11, -0.5)), greedy(sure(11, -0.5 - 2**-24))
    assert verified(one, two).agree
    assert verified(one, one, exact=True).agree
    assert not verified(one, two, exact=True).agree


def test_the_text_names_prompt_place_tokens_and_leads() -> None:
    one = greedy((371, -0.75, {371: -0.75, 545: -0.875}), prompt="A\ncat" * 20)
    two = greedy((545, -0.5, {545: -0.5, 5: -3.0}), prompt="A\ncat" * 20)
    found = verified(one, two)
    assert not found.agree
    shown = as_text(found).splitlines()
    assert shown[0] == "ckpt: 1 prompt, 1 token at MP 1, dtype auto"
    assert shown[1] == "MP 2: 0 of 1 prompt agree; log-probabilities of equal tokens differ by 0 at most"
    assert shown[2].startswith("  prompt 0 ('A\\ncatA\\ncat")
    # Pieces of the demo's tokenizer; a space in front belongs to the second.
    assert shown[2].endswith(
        "...'), tokens[0]: MP 1 has 371 ('ke'), its logit ahead by 0.125; MP 2 has 545 (' man'), its logit ahead by "
        "more than 2.5"
    )
    assert shown[3].startswith("MP 1, 2 do not agree; ")
    exact = as_text(verified(one, two, exact=True)).splitlines()
    assert exact[0].endswith("in the exact mode")
    assert "a fault of shardrun's" in exact[-1]
    assert as_text(verified(one, one)).splitlines()[1:] == [
        "MP 2: all tokens agree; log-probabilities of equal tokens differ by 0 at most",
        "MP 1, 2 agree",
    ]


def test_many_differences_are_counted_and_the_first_are_shown() -> None:
    one, two = greedy(sure(11)), greedy(sure(12))
    asked = VerifyOptions(mp=[1, 2])
    found = verification_of("ckpt", asked, {1: 1.0, 2: 2.0}, {1: [one] * 25, 2: [two] * 25}, TOKENIZER)
    assert len(found.compared[0].differences) == 25
    shown = as_text(found).splitlines()
    assert sum(line.startswith("  prompt") for line in shown) == 10
    assert "  and 15 prompts more: --json lists them" in shown


def test_the_object_can_be_written_as_json() -> None:
    one, two = greedy(sure(11)), greedy(sure(12))
    found = json.loads(json.dumps(verified(one, two).as_json()))
    assert (found["agree"], found["reference_mp"], found["prompts"], found["tokens"]) == (False, 1, 1, 1)
    (compared,) = found["compared"]
    (difference,) = compared["differences"]
    assert difference["other"]["mp"] == 2
    assert difference["reference"]["token"] == 11


@pytest.mark.parametrize("sizes", [[1, 2], [4, 1, 2]])
def test_the_first_size_is_what_the_others_are_compared_with(sizes: list[int]) -> None:
    answers = {mp: [greedy(sure(10 + mp))] for mp in sizes}
    found = verification_of("ckpt", VerifyOptions(mp=sizes), dict.fromkeys(sizes, 1.0), answers, TOKENIZER)
    assert found.reference_mp == sizes[0]
    assert [one.mp for one in found.compared] == sizes[1:]
    assert all(one.differences[0].reference.token == 10 + sizes[0] for one in found.compared)
