"""Text from a stream of tokens, of every kind of tokenizer: all pieces together are the text of all tokens."""

from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from model.tokenizers.base import TextStream, Tokenizer
from model.tokenizers.opening import open_tokenizer
from tests.unit.model.tokenizers import tiny
from tests.unit.model.tokenizers.byte_tokens import ByteTokenizer

quick = settings(
    max_examples=60, deadline=None, database=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
ANY_TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
PUBLISHED = Path(__file__).resolve().parents[5] / "shared" / "models"
# SentencePiece's byte tokens <0x00>..<0xFF> stand behind unk, bos and eos.
FIRST_BYTE = 3
PARTS_OF_CHARACTERS = st.lists(
    st.one_of(
        st.sampled_from([b"\xe2", b"\x82", b"\xac", b"\xf0\x9f", b"\x98", b"\x80", b"\xff", b"\xc3", b"\xed\xa0"]),
        st.sampled_from(["é".encode(), "€".encode(), "😀".encode(), "\ufffd".encode(), b" ", b"a"]),
        st.binary(max_size=6),
    ),
    max_size=10,
)


class Tokens:
    """Lists of tokens of one tokenizer, drawn as numbers."""

    def __init__(self, tokenizer: Tokenizer, ranks: list[bytes]) -> None:
        pieces = tokenizer.bos_id == 1
        self.all = list(range(tokenizer.n_words))
        self.bytes = [FIRST_BYTE + byte if pieces else ranks.index(bytes([byte])) for byte in range(256)]
        behind_a = {token: tokenizer.decode([self.bytes[ord("a")], token]) for token in self.all}
        self.silent = [token for token, text in behind_a.items() if text == "a"]
        self.spaces = [token for token, text in behind_a.items() if text.strip() == "a" and text != "a"]

    def pick(self, sort: int, number: int) -> int:
        """Bytes, spaces and control tokens are as frequent as all the others."""
        some = (self.all, self.bytes[128:], self.silent, self.spaces)[sort]
        return some[number % len(some)]


DRAWN = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 10**6)), max_size=25)


@pytest.fixture
def tokens(each: Tokenizer, ranks: list[bytes]) -> Tokens:
    return Tokens(each, ranks)


def streamed(tokenizer: Tokenizer, tokens: Sequence[int], context: Sequence[int] = ()) -> list[str]:
    stream = TextStream(tokenizer, context)
    return [*(stream.push(token) for token in tokens), stream.finish()]


@quick
@given(ANY_TEXT)
def test_streamed_text_is_the_text_and_no_piece_ends_in_half_a_character(each: Tokenizer, text: str) -> None:
    ids = each.encode(text, bos=False, eos=False)
    pieces = streamed(each, ids)
    assert "".join(pieces) == each.decode(ids)
    if "\ufffd" not in text:
        assert not any("\ufffd" in piece for piece in pieces)


@quick
@given(DRAWN)
def test_streamed_text_of_any_tokens_is_their_text(
    each: Tokenizer, tokens: Tokens, drawn: list[tuple[int, int]]
) -> None:
    ids = [tokens.pick(*one) for one in drawn]
    assert "".join(streamed(each, ids)) == each.decode(ids)


@quick
@given(PARTS_OF_CHARACTERS)
def test_streamed_text_of_any_bytes_is_their_text(each: Tokenizer, tokens: Tokens, parts: list[bytes]) -> None:
    ids = [tokens.bytes[byte] for byte in b"".join(parts)]
    assert "".join(streamed(each, ids)) == each.decode(ids)


@quick
@given(ANY_TEXT, DRAWN)
def test_streamed_text_behind_a_context_is_what_the_whole_text_goes_on_with(
    each: Tokenizer, tokens: Tokens, before: str, drawn: list[tuple[int, int]]
) -> None:
    context = each.encode(before, bos=True, eos=False)
    ids = [tokens.pick(*one) for one in drawn]
    whole = each.decode([*context, *ids])
    assert each.decode(context) + "".join(streamed(each, ids, context)) == whole


BYTES = ByteTokenizer()
# Single bytes are as frequent as pieces of several, and as the silent tokens.
BYTE_TOKENS = st.lists(
    st.one_of(st.integers(0, 127), st.integers(128, 255), st.integers(256, BYTES.n_words - 1)), max_size=30
)


@settings(max_examples=400, deadline=None, database=None)
@given(BYTE_TOKENS, BYTE_TOKENS)
def test_streamed_text_of_tokens_of_any_bytes_is_their_text(before: list[int], ids: list[int]) -> None:
    assert "".join(streamed(BYTES, ids)) == BYTES.decode(ids)
    context = [*before, ord("x")]
    assert BYTES.decode(context) + "".join(streamed(BYTES, ids, context)) == BYTES.decode([*context, *ids])


@pytest.fixture(scope="module", params=["stories260K", "stories15M"])
def published(request: pytest.FixtureRequest) -> Tokenizer:
    path = PUBLISHED / request.param / "tokenizer.model"
    if not path.exists():
        pytest.skip("needs the models beside the repository")
    return open_tokenizer(path)


@settings(max_examples=200, deadline=None, database=None)
@given(st.data(), st.text(st.sampled_from(" aé€😀\n"), max_size=4))
def test_streamed_text_of_any_tokens_of_a_published_model_is_their_text(
    published: Tokenizer, data: st.DataObject, before: str
) -> None:
    # Control tokens and bytes come first of all, and are as frequent as the words.
    some = st.one_of(st.integers(0, FIRST_BYTE + 255), st.integers(0, published.n_words - 1))
    ids = data.draw(st.lists(some, max_size=30))
    assert "".join(streamed(published, ids)) == published.decode(ids)
    context = published.encode(before, bos=True, eos=False)
    whole = published.decode([*context, *ids])
    assert published.decode(context) + "".join(streamed(published, ids, context)) == whole


def test_a_character_of_four_bytes_comes_with_its_last_byte(each: Tokenizer, tokens: Tokens) -> None:
    ids = [tokens.bytes[byte] for byte in "a😀b".encode()]
    assert streamed(each, ids) == ["a", "", "", "", "😀", "b", ""]


def test_bytes_that_never_became_a_character_come_at_the_end(each: Tokenizer, tokens: Tokens) -> None:
    pieces = streamed(each, [tokens.bytes[byte] for byte in b"a\xf0\x9f"])
    assert pieces[:3] == ["a", "", ""]
    assert pieces[3] in ("\ufffd", "\ufffd\ufffd")


def test_a_long_run_of_broken_bytes_is_not_held_back_for_ever(each: Tokenizer, tokens: Tokens) -> None:
    stream = TextStream(each)
    pieces = [stream.push(token) for token in [tokens.bytes[0xFF]] * 20]
    assert len("".join(pieces)) >= 16


def test_a_context_that_ends_in_half_a_character_costs_nothing_of_what_follows(each: Tokenizer, tokens: Tokens) -> None:
    stream = TextStream(each, [tokens.bytes[byte] for byte in b"a\xf0\x9f"])
    pieces = [stream.push(tokens.bytes[byte]) for byte in b"\x98\x80bcdef"]
    assert "".join(pieces)[-5:] == "bcdef"


def test_the_space_before_a_word_is_kept_behind_a_context_and_dropped_without_one(each: Tokenizer) -> None:
    first, word = (each.encode(text, bos=False, eos=False) for text in ("the", "the water"))
    assert word[: len(first)] == first
    assert "".join(streamed(each, word[len(first) :], [each.bos_id, *first])) == " water"
    assert "".join(streamed(each, word, [each.bos_id])) == "the water"


def test_a_token_costs_the_same_at_the_end_of_a_long_text(each: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = each.encode(tiny.SENTENCES * 3 + "\u2028", bos=False, eos=False) + [each.eos_id] * 200
    decoded: list[int] = []
    decode = each.decode

    def counting(some: Sequence[int]) -> str:
        decoded.append(len(some))
        return decode(some)

    monkeypatch.setattr(each, "decode", counting)
    pieces = streamed(each, ids, ids)
    monkeypatch.undo()
    assert "".join(pieces) == decode([*ids, *ids])[len(decode(ids)) :]
    # At first the context is looked through for its last word.
    assert max(decoded[40:]) < 20
    assert sum(decoded[40:]) < 20 * len(ids)
