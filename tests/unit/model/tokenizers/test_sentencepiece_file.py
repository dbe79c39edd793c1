"""Text to ids and back, and text from a stream of tokens."""

import base64
import re
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from model.tokenizers.base import TextStream, Tokenizer
from model.tokenizers.opening import find_tokenizer, is_tiktoken, open_tokenizer
from parallel.errors import RefusedError

# The fixture is made once a session and never changed.
quick = settings(
    max_examples=200, deadline=None, database=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
ANY_TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
# SentencePiece's byte tokens <0x00>..<0xFF> stand behind unk, bos and eos.
FIRST_BYTE = 3


def bytes_as_tokens(data: bytes) -> list[int]:
    return [FIRST_BYTE + byte for byte in data]


def streamed(tokenizer: Tokenizer, tokens: list[int], context: list[int] | None = None) -> list[str]:
    stream = TextStream(tokenizer, context or [])
    return [*(stream.push(token) for token in tokens), stream.finish()]


def test_the_ids_of_bos_eos_and_pad_are_llama_2s(tokenizer: Tokenizer) -> None:
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id, tokenizer.n_words) == (1, 2, -1, 360)
    assert tokenizer.sp_model.id_to_piece(FIRST_BYTE) == "<0x00>"
    assert tokenizer.sp_model.id_to_piece(FIRST_BYTE + 255) == "<0xFF>"


def test_bos_and_eos_are_put_around_only_where_asked_for(tokenizer: Tokenizer) -> None:
    plain = tokenizer.encode("the cat", bos=False, eos=False)
    assert plain and not {1, 2} & set(plain)
    assert tokenizer.encode("the cat", bos=True, eos=False) == [1, *plain]
    assert tokenizer.encode("the cat", bos=False, eos=True) == [*plain, 2]
    assert tokenizer.encode("the cat", bos=True, eos=True) == [1, *plain, 2]
    assert tokenizer.encode("", bos=True, eos=False) == [1]


@quick
@given(ANY_TEXT)
def test_any_text_comes_back_from_its_ids(tokenizer: Tokenizer, text: str) -> None:
    # SentencePiece writes a space as U+2581 and cannot tell the two apart; it drops NUL.
    text = text.replace("\u2581", " ").replace("\0", "")
    assert tokenizer.decode(tokenizer.encode(text, bos=True, eos=True)) == text


def test_text_that_spells_a_control_token_stays_text(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("<s> and </s>", bos=False, eos=False)
    assert not {1, 2} & set(ids)
    assert tokenizer.decode(ids) == "<s> and </s>"


def test_one_id_decodes_as_a_list_of_it(tokenizer: Tokenizer) -> None:
    token = tokenizer.encode("stone", bos=False, eos=False)[0]
    assert tokenizer.decode(token) == tokenizer.decode([token])
    assert tokenizer.decode([]) == tokenizer.decode(1) == tokenizer.decode([1, 2]) == ""


def test_half_a_surrogate_pair_is_refused_with_its_byte(tokenizer: Tokenizer) -> None:
    with pytest.raises(RefusedError, match=re.escape(r"half a surrogate pair at byte 3 ('\ud83d')")):
        tokenizer.encode("aé\ud83d", bos=True, eos=False)


@quick
@given(ANY_TEXT)
def test_streamed_text_is_the_text_and_no_piece_ends_in_half_a_character(tokenizer: Tokenizer, text: str) -> None:
    tokens = tokenizer.encode(text, bos=False, eos=False)
    pieces = streamed(tokenizer, tokens)
    assert "".join(pieces) == tokenizer.decode(tokens)
    if "\ufffd" not in text:
        assert not any("\ufffd" in piece for piece in pieces)


@quick
@given(st.lists(st.integers(0, 359), max_size=25))
def test_streamed_text_of_any_tokens_is_their_text(tokenizer: Tokenizer, tokens: list[int]) -> None:
    assert "".join(streamed(tokenizer, tokens)) == tokenizer.decode(tokens)


@quick
@given(
    st.lists(
        st.one_of(
            st.sampled_from([b"\xe2", b"\x82", b"\xac", b"\xf0\x9f", b"\x98", b"\x80", b"\xff", b"\xc3", b"\xed\xa0"]),
            st.sampled_from(["é".encode(), "€".encode(), "😀".encode(), "\ufffd".encode(), b" ", b"a"]),
            st.binary(max_size=6),
        ),
        max_size=10,
    )
)
def test_streamed_text_of_any_bytes_is_their_text(tokenizer: Tokenizer, parts: list[bytes]) -> None:
    tokens = bytes_as_tokens(b"".join(parts))
    assert "".join(streamed(tokenizer, tokens)) == tokenizer.decode(tokens)


@quick
@given(ANY_TEXT, st.lists(st.one_of(st.integers(0, 359), st.integers(FIRST_BYTE + 128, FIRST_BYTE + 255)), max_size=20))
def test_streamed_text_behind_a_context_is_what_the_whole_text_goes_on_with(
    tokenizer: Tokenizer, before: str, tokens: list[int]
) -> None:
    context = tokenizer.encode(before, bos=True, eos=False)
    whole = tokenizer.decode([*context, *tokens])
    shown = tokenizer.decode(context)
    assert shown + "".join(streamed(tokenizer, tokens, context)) == whole


def test_a_character_of_four_bytes_comes_with_its_last_byte(tokenizer: Tokenizer) -> None:
    assert streamed(tokenizer, bytes_as_tokens("a😀b".encode())) == ["a", "", "", "", "😀", "b", ""]


def test_bytes_that_never_became_a_character_come_at_the_end(tokenizer: Tokenizer) -> None:
    assert streamed(tokenizer, bytes_as_tokens(b"a\xf0\x9f")) == ["a", "", "", "\ufffd\ufffd"]


def test_a_long_run_of_broken_bytes_is_not_held_back_for_ever(tokenizer: Tokenizer) -> None:
    stream = TextStream(tokenizer)
    pieces = [stream.push(token) for token in bytes_as_tokens(b"\xff" * 20)]
    assert len("".join(pieces)) >= 16


def test_the_space_before_a_word_is_kept_behind_a_context_and_dropped_without_one(tokenizer: Tokenizer) -> None:
    word = tokenizer.encode("water", bos=False, eos=False)
    assert "".join(streamed(tokenizer, word, tokenizer.encode("the", bos=True, eos=False))) == " water"
    assert "".join(streamed(tokenizer, word, [1])) == "water"


def test_a_tokenizer_is_looked_for_beside_the_shards_and_then_one_folder_up(
    tmp_path: Path, tokenizer: Tokenizer
) -> None:
    folder = tmp_path / "download" / "7B"
    folder.mkdir(parents=True)
    assert find_tokenizer(folder) is None
    above = folder.parent / "tokenizer.model"
    above.write_bytes(tokenizer.path.read_bytes())
    assert find_tokenizer(folder) == above
    beside = folder / "tokenizer.model"
    beside.write_bytes(tokenizer.path.read_bytes())
    assert find_tokenizer(folder) == beside


def test_a_vocabulary_of_another_size_is_refused_with_both_sizes(tokenizer: Tokenizer) -> None:
    tokenizer.check_vocabulary(360)
    with pytest.raises(RefusedError, match="has 360 pieces, but the model's embedding has 512 rows"):
        tokenizer.check_vocabulary(512)


def test_llama_3s_file_is_told_apart_by_its_lines(tmp_path: Path, tokenizer: Tokenizer) -> None:
    path = tmp_path / "tokenizer.model"
    path.write_bytes(b"".join(base64.b64encode(bytes([byte])) + f" {byte}\n".encode() for byte in range(256)))
    assert is_tiktoken(path)
    assert not is_tiktoken(tokenizer.path)
    with pytest.raises(RefusedError, match=r"is a tiktoken file \(Llama 3\)"):
        open_tokenizer(path)


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"", "is empty (0 bytes); download it again"),
        (b"junk" * 100, "is not a SentencePiece model ("),
        (b"<!DOCTYPE html><html></html>", "a web page"),
        (b"version https://git-lfs.github.com/spec/v1\n", "is a Git LFS pointer"),
    ],
    ids=["empty", "junk", "a web page", "a Git LFS pointer"],
)
def test_a_file_that_is_no_tokenizer_is_refused_in_a_sentence(tmp_path: Path, content: bytes, text: str) -> None:
    path = tmp_path / "tokenizer.model"
    path.write_bytes(content)
    with pytest.raises(RefusedError, match=re.escape(f"{path}: ") + ".*" + re.escape(text)):
        open_tokenizer(path)


def test_half_a_tokenizer_is_refused(tmp_path: Path, tokenizer: Tokenizer) -> None:
    path = tmp_path / "tokenizer.model"
    whole = tokenizer.path.read_bytes()
    for size in (10, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(RefusedError, match=r"tokenizer\.model: is not a SentencePiece model \("):
            open_tokenizer(path)


def test_a_missing_tokenizer_is_named(tmp_path: Path) -> None:
    with pytest.raises(RefusedError, match=r"tokenizer\.model: does not exist"):
        open_tokenizer(tmp_path / "tokenizer.model")
