"""Stop strings: which are refused, where text is cut, and that text which was given out never has to be taken back."""

from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model.generation.stopping import AnswerStream, StopMatcher, answer_text, check_stops, lead_of
from model.tokenizers.base import TextStream, Tokenizer
from model.tokenizers.opening import open_tokenizer
from parallel.errors import RefusedError
from tests.unit.model.tokenizers import tiny
from tests.unit.model.tokenizers.byte_tokens import ByteTokenizer

PUBLISHED = Path(__file__).resolve().parents[5] / "shared" / "models"
SENTENCE = "The hare ran over the field, naïve 😀 and late."

thorough = settings(max_examples=300, deadline=None, database=None)
quick = settings(max_examples=50, deadline=None, database=None)


def cut(text: str, stops: Sequence[str]) -> tuple[str, bool]:
    """What is left of `text`, and whether a stop string came: looked for anew behind every character."""
    for end in range(1, len(text) + 1):
        begins = [end - len(stop) for stop in stops if text[:end].endswith(stop)]
        if begins:
            return text[: min(begins)], True
    return text, False


def held_back(text: str, stops: Sequence[str]) -> int:
    """Characters at the end of `text` that may yet be of a stop string."""
    begins = (stop[:length] for stop in stops for length in range(1, len(stop)))
    return max((len(begin) for begin in begins if text.endswith(begin)), default=0)


# --- Which are refused ---


def test_usual_stop_strings_pass() -> None:
    assert check_stops(["\n\n", "User:", "😀", " ", "\ufffd"]) == ("\n\n", "User:", "😀", " ", "\ufffd")
    assert check_stops([]) == ()
    assert len(check_stops(["x" * 256] * 64)) == 64


@pytest.mark.parametrize(
    ("stops", "says"),
    [
        (["a", ""], "stop string 1 is empty, and would end every answer at once; leave it out"),
        (["a", "b", 7], "stop string 2 is 7; wanted a text"),
        ([None], "stop string 0 is None; wanted a text"),
        ([b"x"], "stop string 0 is b'x'; wanted a text"),
        ([["x" * 500]], f"stop string 0 is ['{'x' * 78}...; wanted a text"),
        ("User:", """stop is 'User:'; wanted a list of texts, as ["\\n\\n", "User:"]"""),
        (None, "stop is None; wanted a list of texts"),
        (["a"] * 65, "stop holds 65 strings; wanted at most 64: leave some out"),
        (["a"] * 10_000, "stop holds 10000 strings; wanted at most 64"),
        (["ab" * 128 + "c"], f"stop string 0 ('{'ab' * 20}') has 257 characters; wanted at most 256: the beginning"),
        (["a", "é\ud83d"], "stop string 1: the text has half a surrogate pair at byte 2 ('\\ud83d')"),
    ],
    ids=lambda value: None if isinstance(value, str) else repr(value)[:20],
)
def test_what_cannot_be_a_stop_string_is_refused_by_its_index(stops: Any, says: str) -> None:
    with pytest.raises(RefusedError) as refusal:
        check_stops(stops)
    assert str(refusal.value).startswith(says)
    assert len(str(refusal.value)) < 300


# --- Where text is cut ---

FEW_LETTERS = st.text("ab ", max_size=30)
STOPS = st.lists(st.text("ab ", min_size=1, max_size=6), max_size=5)


def pieces_of(text: str, cuts: Sequence[int]) -> list[str]:
    edges = [0, *sorted(min(place, len(text)) for place in cuts), len(text)]
    return [text[begin:end] for begin, end in pairwise(edges)]


@thorough
@given(FEW_LETTERS, STOPS, st.lists(st.integers(0, 30), max_size=10))
def test_text_is_cut_at_the_same_place_in_whatever_pieces_it_comes(
    text: str, stops: list[str], cuts: list[int]
) -> None:
    matcher = StopMatcher(stops)
    given_out = [matcher.push(piece) for piece in pieces_of(text, cuts)]
    assert ("".join(given_out) + matcher.finish(), matcher.stopped) == cut(text, stops)
    assert matcher.push("more") == ("" if matcher.stopped else "more")


@thorough
@given(FEW_LETTERS, STOPS, st.lists(st.integers(0, 30), max_size=10))
def test_nothing_that_may_be_of_a_stop_string_is_given_out_and_nothing_else_is_held_back(
    text: str, stops: list[str], cuts: list[int]
) -> None:
    matcher = StopMatcher(stops)
    come, given_out = "", ""
    for piece in pieces_of(text, cuts):
        come, given_out = come + piece, given_out + matcher.push(piece)
        if cut(come, stops)[1]:
            assert matcher.stopped
            return
        assert given_out == come[: len(come) - held_back(come, stops)]


@pytest.mark.parametrize(
    ("text", "stops", "left"),
    [
        ("one. two", ["."], "one"),
        ("one. two", ["two", "."], "one"),
        # Both are complete with the same character: the one that begins first.
        ("xabcd", ["abc", "bc"], "x"),
        ("xabcd", ["bc", "abc"], "x"),
        # The longer one began first, but is not complete by then: what was held back for it is given out.
        ("xabcd", ["abcd", "bc"], "xa"),
        ("xabcd", ["abc", "ab"], "x"),
        # A false start within a stop string, and one within itself.
        ("aab", ["ab"], "a"),
        ("abababac.", ["ababac"], "ab"),
        ("\n\n\n", ["\n\n"], ""),
        ("abc", ["abc"], ""),
        ("abc", ["abcd"], "abc"),
        ("abc", [], "abc"),
        ("n\u0303 \U0001f600", ["\u0303"], "n"),
    ],
)
def test_a_text_ends_before_the_stop_string_that_is_complete_first(text: str, stops: list[str], left: str) -> None:
    at_once, one_by_one = StopMatcher(stops), StopMatcher(stops)
    assert at_once.push(text) + at_once.finish() == left
    assert "".join(map(one_by_one.push, text)) + one_by_one.finish() == left
    assert at_once.stopped == one_by_one.stopped == (left != text)


def test_a_long_text_that_always_nearly_stops_is_looked_through_once() -> None:
    # Looked through anew for each stop string or character, this would take minutes and not a blink.
    stops = check_stops(["a" * 255 + chr(0x4E00 + number) for number in range(64)])
    matcher = StopMatcher(stops)
    text = "".join(matcher.push("a") for _ in range(100_000))
    assert text == "a" * (100_000 - 255)
    assert matcher.push("b") == "a" * 255 + "b"
    assert matcher.push("a" * 256 + "\u4e07") == "a"
    assert matcher.stopped


# --- From tokens ---

TOKENIZERS = ["bytes", "sentencepiece", "tiktoken", "llama3_json", "llama2_json", "stories260K", "stories15M"]
FIRST_BYTE = 3


@pytest.fixture(scope="session")
def tokenizers(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Callable[[], Tokenizer]]:
    folder, ranks = tmp_path_factory.mktemp("tokenizers"), tiny.train_ranks()
    (folder / "llama2").mkdir()
    return {
        "bytes": ByteTokenizer,
        "sentencepiece": lambda: tokenizer,
        "tiktoken": lambda: open_tokenizer(tiny.write_tiktoken(folder / "tokenizer.model", ranks)),
        "llama3_json": lambda: open_tokenizer(tiny.write_json(folder / "tokenizer.json", tiny.llama3_json(ranks))),
        "llama2_json": lambda: open_tokenizer(
            tiny.write_json(folder / "llama2" / "tokenizer.json", tiny.llama2_json(tokenizer.path))
        ),
    }


@pytest.fixture(scope="module", params=TOKENIZERS)
def each(request: pytest.FixtureRequest, tokenizers: dict[str, Callable[[], Tokenizer]]) -> Tokenizer:
    if request.param in tokenizers:
        return tokenizers[request.param]()
    path = PUBLISHED / request.param / "tokenizer.model"
    if not path.exists():
        pytest.skip("needs the models beside the repository")
    return open_tokenizer(path)


def any_tokens(tokenizer: Tokenizer) -> st.SearchStrategy[list[int]]:
    """Of all kinds; in SentencePiece the bytes and control tokens come first and are as frequent as all others."""
    some = st.one_of(st.integers(0, FIRST_BYTE + 255), st.integers(0, tokenizer.n_words - 1))
    words = st.sampled_from(tokenizer.encode(SENTENCE, bos=True, eos=True))
    return st.lists(st.one_of(some, words), max_size=15)


def any_stops(text: str) -> st.SearchStrategy[list[str]]:
    """Parts of the text, some with another end, and others."""
    parts = st.tuples(st.integers(0, len(text)), st.integers(1, 8)).map(lambda part: text[part[0] : sum(part)])
    changed = st.tuples(parts, st.sampled_from(["", "", "e", " ", "\ufffd"])).map("".join)
    return st.lists(st.one_of(changed, st.text("the ", max_size=3)).filter(bool), max_size=3)


@quick
@given(st.data())
def test_streamed_text_is_the_text_of_all_tokens_up_to_the_first_stop_string(
    each: Tokenizer, data: st.DataObject
) -> None:
    ids = data.draw(any_tokens(each))
    text = each.decode(ids)
    stops = data.draw(any_stops(text))
    stream = AnswerStream(each, stops)
    pieces = [stream.push(token) for token in ids]
    pieces.append(stream.finish())
    assert ("".join(pieces), stream.stopped) == cut(text, stops)
    assert stream.text == "".join(pieces) == answer_text(each, ids, stops)
    assert stream.finish() == ""
    if not stops:
        assert stream.text == text


@quick
@given(st.data(), st.text("the \n", max_size=5))
def test_streamed_text_behind_a_context_is_what_the_tokens_add_to_it(
    each: Tokenizer, data: st.DataObject, before: str
) -> None:
    context = each.encode(before, bos=True, eos=False)
    ids = data.draw(any_tokens(each))
    text = each.decode([*context, *ids])[len(each.decode(context)) :]
    stops = data.draw(any_stops(text))
    stream = AnswerStream(each, stops, context=context)
    streamed = "".join(map(stream.push, ids)) + stream.finish()
    assert streamed == answer_text(each, ids, stops, context) == cut(text, stops)[0]


@quick
@given(st.data(), st.text("the \n", max_size=5))
def test_streamed_text_after_a_prompt_is_the_text_alone_and_what_parts_it_from_the_prompt(
    each: Tokenizer, data: st.DataObject, before: str
) -> None:
    prompt = each.encode(before, bos=True, eos=False)
    ids = data.draw(any_tokens(each))
    text = each.decode(ids)
    stops = data.draw(any_stops(text))
    stream = AnswerStream(each, stops, after=prompt)
    streamed = "".join(map(stream.push, ids)) + stream.finish()
    assert streamed == stream.text == stream.lead + cut(text, stops)[0]
    if not stream.stopped:
        assert each.decode(prompt) + streamed == each.decode([*prompt, *ids])
        assert lead_of(each, prompt, ids) == stream.lead


@quick
@given(st.data(), st.text(st.sampled_from("the naïve€😀\n"), max_size=12))
def test_no_part_of_a_stop_string_and_no_half_a_character_is_ever_given_out(
    each: Tokenizer, data: st.DataObject, written: str
) -> None:
    ids = each.encode(written, bos=True, eos=False)
    text = each.decode(ids)
    stops = data.draw(any_stops(text))
    stream, whole_characters = AnswerStream(each, stops), TextStream(each)
    come = ""
    for token in ids:
        stream.push(token)
        come += whole_characters.push(token)
        assert text.startswith(come)
        if stream.stopped:
            break
        assert stream.text == come[: len(come) - held_back(come, stops)]
    assert (stream.text, stream.stopped) == cut(come, stops) or stream.text + stream.finish() == text


def test_a_stop_string_is_found_over_tokens_and_within_one(each: Tokenizer) -> None:
    ids = each.encode(SENTENCE, bos=False, eos=False)
    for begin in range(len(SENTENCE)):
        for length in (1, 2, 3, 7, 20):
            stop = SENTENCE[begin : begin + length]
            stream = AnswerStream(each, [stop])
            pieces = [stream.push(token) for token in ids]
            assert "".join(pieces) == SENTENCE[: SENTENCE.index(stop)]
            assert stream.stopped


def test_a_stop_string_that_never_completes_comes_at_the_end() -> None:
    stream = AnswerStream(ByteTokenizer(), ["User: "])
    assert [stream.push(byte) for byte in b"no User:"] == ["n", "o", " ", "", "", "", "", ""]
    assert not stream.stopped
    assert stream.finish() == "User:"


def test_a_character_that_lacks_bytes_is_held_back_before_a_stop_string_is_looked_for() -> None:
    stream = AnswerStream(ByteTokenizer(), ["😀", "\ufffd!"])
    assert [stream.push(byte) for byte in b"a\xf0\x9f\x98"] == ["a", "", "", ""]
    assert stream.push(0x80) == ""
    assert stream.stopped
    broken = AnswerStream(ByteTokenizer(), ["\ufffd"])
    assert broken.push(ord("a")) + broken.push(0xF0) == "a"
    assert not broken.stopped
    assert broken.finish() == ""
    assert broken.stopped


def test_the_space_that_parts_an_answer_from_its_prompt_is_the_leads(tokenizer: Tokenizer) -> None:
    first, whole = (tokenizer.encode(text, bos=True, eos=False) for text in ("the", "the water"))
    answer = whole[len(first) :]
    assert tokenizer.decode(answer) == "water"
    assert lead_of(tokenizer, first, answer) == lead_of(tokenizer, first, [tokenizer.eos_id, *answer]) == " "
    # Behind a prompt without text the space is dropped, as it is of the answer alone.
    assert lead_of(tokenizer, [tokenizer.bos_id], answer) == lead_of(tokenizer, first, [2]) == ""
    # It is no part of the answer, in which alone a stop string is looked for.
    stream = AnswerStream(tokenizer, [" w"], after=first)
    assert "".join(map(stream.push, answer)) + stream.finish() == " water"
    # It stands even before an answer of nothing, as in the text of both.
    stream = AnswerStream(tokenizer, ["w"], after=first)
    assert ("".join(map(stream.push, answer)), stream.stopped, stream.lead) == (" ", True, " ")
