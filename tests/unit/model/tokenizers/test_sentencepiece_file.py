"""SentencePiece models: text to ids and back, and Code Llama's marks."""

import io
from pathlib import Path

import pytest
import sentencepiece
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from model.tokenizers.base import Tokenizer
from model.tokenizers.opening import open_tokenizer
from model.tokenizers.sentencepiece_file import INFILL_PIECES
from parallel.errors import RefusedError
from tests.unit.model.tokenizers import tiny

# The fixture is made once a session and never changed.
quick = settings(
    max_examples=100, deadline=None, database=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
ANY_TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
# SentencePiece's byte tokens <0x00>..<0xFF> stand behind unk, bos and eos.
FIRST_BYTE = 3


def trained(path: Path, **options: object) -> Path:
    """A model with Llama's settings, and others."""
    written = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(tiny.SENTENCES.strip().split("\n")),
        model_writer=written,
        model_type="bpe",
        vocab_size=400,
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        minloglevel=2,
        **options,
    )
    path.write_bytes(written.getvalue())
    return path


def test_the_ids_of_bos_eos_and_pad_are_llama_2s(tokenizer: Tokenizer) -> None:
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id, tokenizer.n_words) == (1, 2, -1, 360)
    assert tokenizer.stop_ids == tokenizer.chat_stop_ids == {2}
    assert tokenizer.specials == {}
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


@pytest.mark.parametrize("sort", ["user_defined_symbols", "control_symbols"])
def test_code_llamas_marks_are_known_and_no_text_spells_them(tmp_path: Path, sort: str) -> None:
    tokenizer = open_tokenizer(trained(tmp_path / "tokenizer.model", **{sort: list(INFILL_PIECES)}))
    assert list(tokenizer.specials) == ["\u2581<PRE>", "\u2581<MID>", "\u2581<SUF>", "\u2581<EOT>"]
    assert sorted(tokenizer.specials.values()) == [3, 4, 5, 6]
    text = "a <PRE> b<SUF> <EOT> <MID>"
    ids = tokenizer.encode(text, bos=True, eos=False)
    assert not {3, 4, 5, 6} & set(ids)
    assert tokenizer.decode(ids) == text
    assert tokenizer.decode([*ids, 3, 4, 5, 6]) == text


def test_a_model_without_bos_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RefusedError, match=r"tokenizer\.model: has no bos or no eos piece"):
        open_tokenizer(trained(tmp_path / "tokenizer.model", bos_id=-1))


def test_half_a_tokenizer_is_refused(tmp_path: Path, tokenizer: Tokenizer) -> None:
    path = tmp_path / "tokenizer.model"
    whole = tokenizer.path.read_bytes()
    for size in (10, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(RefusedError, match=r"tokenizer\.model: is not a SentencePiece model \("):
            open_tokenizer(path)
