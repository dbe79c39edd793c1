"""Llama 3's tokenizer file: its lines, its ids against byte-pair encoding done by hand, its control tokens."""

import base64
import re
from itertools import pairwise
from pathlib import Path

import pytest
import regex
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from model.tokenizers.base import Tokenizer
from model.tokenizers.opening import open_tokenizer
from model.tokenizers.tiktoken_file import cut_long_runs
from parallel.errors import RefusedError
from tests.unit.model.tokenizers import tiny

quick = settings(
    max_examples=100, deadline=None, database=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
# Not what Unicode has not assigned: what of it is a letter depends on the library's version.
ANY_TEXT = st.text(st.characters(exclude_categories=["Cs", "Cn"]), max_size=40)
WORDS = st.lists(st.sampled_from([*re.findall(r"\S+|\s", tiny.SENTENCES), "'LL", "\r\n", "   ", "999"]), max_size=12)


def by_hand(ranks: list[bytes], text: str) -> list[int]:
    """Byte-pair encoding by its definition: in each part, merge the leftmost pair of the lowest rank until none is."""
    rank_of = {token: rank for rank, token in enumerate(ranks)}
    ids = []
    for part in regex.findall(tiny.PATTERN, text):
        pieces = [bytes([byte]) for byte in part.encode("utf-8")]
        while True:
            pairs = [(rank_of.get(a + b, len(ranks)), place) for place, (a, b) in enumerate(pairwise(pieces))]
            rank, place = min(pairs, default=(len(ranks), 0))
            if rank == len(ranks):
                break
            pieces[place : place + 2] = [ranks[rank]]
        ids += [rank_of[piece] for piece in pieces]
    return ids


@quick
@given(st.one_of(ANY_TEXT, WORDS.map("".join), WORDS.map(" ".join)))
def test_ids_are_those_of_byte_pair_encoding_by_hand(llama3: Tokenizer, ranks: list[bytes], text: str) -> None:
    assert llama3.encode(text, bos=False, eos=False) == by_hand(ranks, text)


@quick
@given(st.one_of(ANY_TEXT, WORDS.map("".join)))
def test_any_text_comes_back_from_its_ids(llama3: Tokenizer, text: str) -> None:
    assert llama3.decode(llama3.encode(text, bos=True, eos=True)) == text


def test_the_sentences_take_fewer_tokens_than_bytes(llama3: Tokenizer) -> None:
    assert len(llama3.encode(tiny.SENTENCES, bos=False, eos=False)) < len(tiny.SENTENCES.encode()) * 0.7


def test_the_control_tokens_stand_behind_the_ranks_as_in_llama_3_1(llama3: Tokenizer, ranks: list[bytes]) -> None:
    n = len(ranks)
    assert n == 256 + tiny.MERGES
    assert (llama3.kind, llama3.n_words, llama3.bos_id, llama3.eos_id, llama3.pad_id) == (
        "tiktoken",
        n + 256,
        n,
        n + 1,
        -1,
    )
    assert sorted(llama3.specials.values()) == list(range(n, n + 256))
    assert {name: llama3.specials[name] - n for name in tiny.NAMED} == tiny.NAMED
    reserved = {llama3.specials[f"<|reserved_special_token_{number}|>"] - n for number in range(256 - len(tiny.NAMED))}
    assert reserved == set(range(256)) - set(tiny.NAMED.values())


def test_the_ids_of_a_whole_vocabulary_are_the_published_ones(tmp_path: Path, ranks: list[bytes]) -> None:
    more = [f"\x00{number}".encode() for number in range(128_000 - len(ranks))]
    tokenizer = open_tokenizer(tiny.write_tiktoken(tmp_path / "tokenizer.model", [*ranks, *more]))
    tokenizer.check_vocabulary(128_256)
    assert (tokenizer.bos_id, tokenizer.eos_id) == (128_000, 128_001)
    assert tokenizer.stop_ids == {128_001}
    assert tokenizer.chat_stop_ids == {128_001, 128_008, 128_009}


def test_text_that_spells_a_control_token_stays_text(llama3: Tokenizer, ranks: list[bytes]) -> None:
    text = "".join(llama3.specials)
    ids = llama3.encode(text, bos=False, eos=False)
    assert max(ids) < len(ranks)
    assert llama3.decode(ids) == text


def test_control_tokens_are_silent_also_amid_a_character(llama3: Tokenizer, ranks: list[bytes]) -> None:
    first, second = (ranks.index(bytes([byte])) for byte in "é".encode())
    assert llama3.decode([first, llama3.specials["<|eot_id|>"], second]) == "é"
    assert llama3.decode(list(llama3.specials.values())) == llama3.decode([]) == llama3.decode(llama3.bos_id) == ""


def test_bytes_that_are_no_character_become_u_fffd(llama3: Tokenizer, ranks: list[bytes]) -> None:
    assert llama3.decode([ranks.index(b"a"), ranks.index(b"\xff"), ranks.index(b"b")]) == "a\ufffdb"


def test_bos_and_eos_are_put_around_only_where_asked_for(llama3: Tokenizer) -> None:
    plain = llama3.encode("the cat", bos=False, eos=False)
    assert llama3.encode("the cat", bos=True, eos=True) == [llama3.bos_id, *plain, llama3.eos_id]
    assert llama3.encode("", bos=True, eos=False) == [llama3.bos_id]


@pytest.mark.parametrize("text", [" " * 1_200_000, "a" * 1_200_000, "ab \n" * 300_000, "\u3000" * 60_000])
def test_a_text_of_a_million_characters_is_encoded(llama3: Tokenizer, text: str) -> None:
    assert llama3.decode(llama3.encode(text, bos=False, eos=False)) == text


@quick
@given(st.lists(st.tuples(st.sampled_from(["a", " ", "é", "\u3000", "\n"]), st.integers(1, 60_000)), max_size=12))
def test_a_long_text_is_cut_where_llama_3_cuts_it(runs: list[tuple[str, int]]) -> None:
    text = "".join(letter * count for letter, count in runs)
    parts = cut_long_runs(text)
    assert "".join(parts) == text
    # Each cut stands behind 400,000 characters or 25,000 of one sort, and no run is longer.
    place = 0
    for part in parts[:-1]:
        place += len(part)
        spaces = {letter.isspace() for letter in text[max(0, place - 25_000) : place]}
        assert place % 400_000 == 0 or (len(spaces) == 1 and text[place].isspace() in spaces)
    assert max((len(run[0]) for part in parts for run in re.finditer(r"\s+|\S+", part)), default=0) <= 25_000


def test_a_short_text_and_one_with_short_runs_are_not_cut() -> None:
    for text in ("a" * 25_000, "a b" * 100_000, " " * 25_000 + "a" * 25_000):
        assert cut_long_runs(text) == [text]
    assert cut_long_runs("") == []


def test_lines_may_come_in_any_order_and_the_last_may_be_blank_or_without_its_end(
    tmp_path: Path, llama3: Tokenizer, ranks: list[bytes]
) -> None:
    lines = tiny.tiktoken_lines(ranks)
    path = tmp_path / "tokenizer.model"
    for content in (
        b"".join(reversed(lines)),
        b"".join(lines) + b"\n",
        b"".join(lines).rstrip(),
        b"\r\n".join(map(bytes.strip, lines)),
    ):
        path.write_bytes(content)
        assert open_tokenizer(path).encode(tiny.SENTENCES, True, True) == llama3.encode(tiny.SENTENCES, True, True)


def test_a_file_that_was_changed_is_read_anew(tmp_path: Path, ranks: list[bytes]) -> None:
    path = tiny.write_tiktoken(tmp_path / "tokenizer.model", ranks)
    before = open_tokenizer(path).encode("the", bos=False, eos=False)
    tiny.write_tiktoken(path, list(reversed(ranks)))
    assert open_tokenizer(path).encode("the", bos=False, eos=False) != before


def changed(lines: list[bytes], number: int, line: bytes) -> bytes:
    return b"".join([*lines[: number - 1], line, *lines[number:]])


@pytest.mark.parametrize(
    ("number", "line", "says"),
    [
        (7, b"\n", ":7: is ''; wanted a token in base64, a space and its rank"),
        (7, b"IGZ1\n", ":7: is 'IGZ1'; wanted a token in base64"),
        (7, b"IGZ1 6 6\n", ":7: is 'IGZ1 6 6'; wanted"),
        (7, b"IGZ1 six\n", ":7: is 'IGZ1 six'; wanted"),
        (7, b"IGZ1 -6\n", ":7: is 'IGZ1 -6'; wanted"),
        (7, b"IGZ1 6.0\n", ":7: is 'IGZ1 6.0'; wanted"),
        (7, b"IGZ1 " + b"6" * 5000 + b"\n", ":7: is 'IGZ1 66666"),
        (7, b"IGZ 6\n", ":7: 'IGZ' is not base64"),
        (7, b"I*Z1 6\n", ":7: 'I*Z1' is not base64"),
        (7, b"\xff\xfe 6\n", r":7: '\xff\xfe' is not base64"),
        (7, base64.b64encode(b"a word") + b" 5\n", ":7: holds the rank 5 of line 6 again"),
        (376, base64.b64encode(b"a word") + b" 376\n", ": has 376 lines and ranks up to 376, but no rank 375"),
        (7, base64.b64encode(b"a word") + b" 6\n", ": has no token for the byte 0x27"),
    ],
)  # fmt: skip
def test_a_line_that_is_not_as_it_must_be_is_refused_with_its_number(
    tmp_path: Path, ranks: list[bytes], number: int, line: bytes, says: str
) -> None:
    assert ranks[6] == b"'"
    path = tmp_path / "tokenizer.model"
    path.write_bytes(changed(tiny.tiktoken_lines(ranks), number, line))
    with pytest.raises(RefusedError, match=re.escape(f"{path}{says}")) as refused:
        open_tokenizer(path)
    assert str(refused.value).endswith("the tiktoken file is damaged: download it again")
    assert len(str(refused.value)) < len(str(path)) + 200


def test_a_token_that_stands_twice_is_refused(tmp_path: Path, ranks: list[bytes]) -> None:
    path = tmp_path / "tokenizer.model"
    path.write_bytes(changed(tiny.tiktoken_lines(ranks), 300, base64.b64encode(b"'") + b" 299\n"))
    with pytest.raises(RefusedError, match=r"tokenizer\.model:300: holds the token of line 7 again"):
        open_tokenizer(path)


def test_a_file_that_ends_amid_a_line_is_refused(tmp_path: Path, ranks: list[bytes]) -> None:
    whole = b"".join(tiny.tiktoken_lines(ranks))
    start = whole.rstrip().rindex(b"\n") + 1
    path = tmp_path / "tokenizer.model"
    for size in range(start + 1, len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(RefusedError, match=r"tokenizer\.model:376: .* the tiktoken file is damaged"):
            open_tokenizer(path)


def test_a_file_that_ends_behind_a_line_is_refused_with_both_sizes(tmp_path: Path, ranks: list[bytes]) -> None:
    tokenizer = open_tokenizer(tiny.write_tiktoken(tmp_path / "tokenizer.model", ranks[:300]))
    with pytest.raises(RefusedError, match=r"has 556 pieces, but the model's embedding has 632 rows"):
        tokenizer.check_vocabulary(len(ranks) + 256)
