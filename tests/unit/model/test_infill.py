"""Code Llama's infilling prompts against its formula, computed here with the sentencepiece library alone."""

import io
import re
import struct
from itertools import pairwise
from pathlib import Path

import pytest
import sentencepiece
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from model.generation.stopping import AnswerStream, answer_text
from model.hugging_face.tokenizer_files import tokenizer_files
from model.infill import (
    FILL_ME,
    check_can_infill,
    infill_context,
    infill_ids,
    infill_stop_ids,
    split_prompt,
)
from model.params import Params
from model.tokenizers.base import Tokenizer
from model.tokenizers.opening import open_tokenizer
from parallel.errors import RefusedError
from tests.unit.model.tokenizers import tiny

LLAMA_2 = Path(__file__).resolve().parents[4] / "shared" / "models" / "stories15M" / "tokenizer.model"
PRE, MID, SUF, EOT = MARKS = [f"\u2581<{name}>" for name in ("PRE", "MID", "SUF", "EOT")]
# Code Llama's pieces behind Llama 2's, in the order of their ids: what the marks are merged from, the marks, and more.
CODE_LLAMA = [f"\u2581<{name}" for name in ("SU", "SUF", "PRE", "M", "MID", "E", "EOT")]
CODE_LLAMA += [f"\u2581<{name}>" for name in ("PRE", "SUF", "MID", "EOT")]
CODE_LLAMA += ["\u2581" + "<EOT>" * count for count in range(2, 7)]
SMILE = "\u263a"

quick = settings(
    max_examples=60, deadline=None, database=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
# SentencePiece writes a space as U+2581 and cannot tell the two apart; it drops NUL.
ANY_TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\u2581\0"), max_size=30)
CODE = st.lists(st.sampled_from(["the", " ", "  ", "\n", "\t", "é", SMILE, "😀", "(x)", "<", "PRE>"]), max_size=8)
TEXTS = st.one_of(ANY_TEXT, CODE.map("".join))


def trained(path: Path, **options: object) -> Path:
    """A small model with Llama's settings and the marks."""
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


def with_code_llamas_pieces(path: Path) -> Path:
    """Llama 2's model with 16 more pieces, as Code Llama's: messages of protobuf may be put one behind the other."""
    pieces = b""
    for number, text in enumerate(CODE_LLAMA):
        letters = text.encode("utf-8")
        piece = bytes([0x0A, len(letters)]) + letters + b"\x15" + struct.pack("<f", -31741.0 - number)
        pieces += bytes([0x0A, len(piece)]) + piece
    path.write_bytes(LLAMA_2.read_bytes() + pieces)
    return path


@pytest.fixture(scope="module", params=["bytes", "piece", "Code Llama"])
def code(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """Models in which the character of the mark is three bytes, is a piece, and the real one."""
    path = tmp_path_factory.mktemp("code") / "tokenizer.model"
    if request.param != "Code Llama":
        more = {"required_chars": SMILE} if request.param == "piece" else {}
        return open_tokenizer(trained(path, user_defined_symbols=MARKS, **more))
    if not LLAMA_2.exists():
        pytest.skip("needs the models beside the repository")
    return open_tokenizer(with_code_llamas_pieces(path))


@pytest.fixture(scope="module")
def as_json(code: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    folder = tmp_path_factory.mktemp("code_json")
    for name, content in tokenizer_files(code.path, max_tokens=2048).items():
        tiny.write_json(folder / name, content)
    return open_tokenizer(folder / "tokenizer.json")


class Reference:
    """The formulas of codellama's tokenizer and prompt, for texts that spell no mark."""

    def __init__(self, path: Path) -> None:
        self.pieces = sentencepiece.SentencePieceProcessor(model_file=str(path))
        self.smile = self.pieces.piece_to_id(SMILE)
        # codellama drops two ids, the space's and the character's; where that is no piece, it is three bytes.
        self.dropped = 4 if self.smile == self.pieces.unk_id() else 2

    def encode_infilling(self, text: str) -> list[int]:
        ids: list[int] = self.pieces.encode(SMILE + text)
        return ids[self.dropped :]

    def decode_infilling(self, ids: list[int]) -> str:
        assert self.dropped == 2
        text: str = self.pieces.decode([self.smile, *ids])
        return text[1:]

    def prompt(self, prefix: str, suffix: str, suffix_first: bool) -> list[int]:
        pre, mid, suf = (self.pieces.piece_to_id(mark) for mark in (PRE, MID, SUF))
        before, behind = self.pieces.encode(prefix), self.encode_infilling(suffix)
        if suffix_first:
            return [self.pieces.bos_id(), pre, suf, *behind, mid, *before]
        return [self.pieces.bos_id(), pre, *before, suf, *behind, mid]


def spells_a_mark(text: str) -> bool:
    return any(mark[1:] in text for mark in MARKS)


@quick
@given(TEXTS, TEXTS, st.booleans())
def test_ids_are_those_of_code_llamas_formula(code: Tokenizer, prefix: str, suffix: str, suffix_first: bool) -> None:
    reference = Reference(code.path)
    if not spells_a_mark(prefix + " " + suffix):
        expected = reference.prompt(prefix, suffix, suffix_first)
        assert infill_ids(code, prefix, suffix, suffix_first) == expected


def test_the_two_orders_of_a_prompt_with_code_llamas_ids(tmp_path: Path) -> None:
    if not LLAMA_2.exists():
        pytest.skip("needs the models beside the repository")
    code_llama = open_tokenizer(with_code_llamas_pieces(tmp_path / "tokenizer.model"))
    # The pieces "▁x" and "y": before a suffix stands no space.
    assert infill_ids(code_llama, "x", "y") == [1, 32007, 921, 32008, 29891, 32009]
    assert infill_ids(code_llama, "x", "y", suffix_first=True) == [1, 32007, 32008, 29891, 32009, 921]
    assert infill_ids(code_llama, "", "") == [1, 32007, 32008, 32009]
    assert infill_stop_ids(code_llama) == {2, 32010}


@quick
@given(TEXTS, TEXTS, st.booleans())
def test_a_tokenizer_json_of_the_same_model_gives_the_same_ids(
    code: Tokenizer, as_json: Tokenizer, prefix: str, suffix: str, suffix_first: bool
) -> None:
    check_can_infill(params_of(4096, 32), as_json)
    if not spells_a_mark(prefix + " " + suffix):
        ids = infill_ids(code, prefix, suffix, suffix_first)
        assert infill_ids(as_json, prefix, suffix, suffix_first) == ids
        answer = ids[2:]
        assert answer_text(as_json, answer, context=infill_context(as_json)) == answer_text(
            code, answer, context=infill_context(code)
        )


@quick
@given(TEXTS, TEXTS)
def test_the_parts_of_a_prompt_are_the_texts_to_the_letter(code: Tokenizer, prefix: str, suffix: str) -> None:
    pre, mid, suf = (code.specials[mark] for mark in (PRE, MID, SUF))
    for suffix_first in (False, True):
        ids = infill_ids(code, prefix, suffix, suffix_first)
        # No text spells a mark: each is in the prompt once.
        assert ids[:2] == [code.bos_id, pre]
        assert [ids.count(mark) for mark in (pre, mid, suf)] == [1, 1, 1]
        edges = sorted([ids.index(mid), ids.index(suf), len(ids)])
        parts = {ids[begin]: ids[begin + 1 : end] for begin, end in pairwise(edges)}
        before = parts[mid] if suffix_first else ids[2 : ids.index(suf)]
        assert code.decode(before) == prefix
        # An answer is decoded as the text behind the gap is: with the space that it begins with.
        assert answer_text(code, parts[suf], context=infill_context(code)) == suffix


@quick
@given(TEXTS)
def test_an_answer_that_begins_with_a_space_keeps_it_streamed_or_not(code: Tokenizer, text: str) -> None:
    reference = Reference(code.path)
    for written in (text, " " + text, "  " + text):
        ids = reference.encode_infilling(written)
        stream = AnswerStream(code, context=infill_context(code))
        streamed = "".join(map(stream.push, ids)) + stream.finish()
        assert streamed == answer_text(code, ids, context=infill_context(code))
        if not spells_a_mark(written):
            assert streamed == written
            if reference.dropped == 2:
                assert streamed == reference.decode_infilling(ids)


@pytest.mark.parametrize("suffix_first", [False, True])
def test_a_users_text_that_spells_the_marks_stays_text(code: Tokenizer, suffix_first: bool) -> None:
    spelled = " ".join(["x", *(mark[1:] for mark in MARKS), "".join(MARKS), "y"])
    ids = infill_ids(code, spelled, spelled, suffix_first)
    assert sorted(set(ids) & {*code.specials.values()}) == sorted(code.specials[mark] for mark in (PRE, MID, SUF))
    assert [ids.count(code.specials[mark]) for mark in MARKS] == [1, 1, 1, 0]
    plain = spelled.replace("\u2581", " ")
    assert sorted(re.findall("[xy]|<[A-Z]{3}>", code.decode(ids))) == sorted(re.findall("[xy]|<[A-Z]{3}>", plain * 2))


def test_an_answer_ends_at_its_mark_and_at_eos(code: Tokenizer) -> None:
    assert infill_stop_ids(code) == {code.eos_id, code.specials[EOT]}


def test_half_a_surrogate_pair_is_refused_at_its_byte_of_the_text(code: Tokenizer) -> None:
    for texts in (("é\ud83d", ""), ("", "é\ud83d")):
        with pytest.raises(RefusedError, match="half a surrogate pair at byte 2 "):
            infill_ids(code, *texts)


def test_a_tokenizer_that_joins_the_mark_to_what_follows_is_refused(tmp_path: Path) -> None:
    path = trained(tmp_path / "tokenizer.model", user_defined_symbols=[*MARKS, SMILE + "x"])
    tokenizer = open_tokenizer(path)
    assert infill_ids(tokenizer, "a", "yx")
    with pytest.raises(RefusedError, match=rf"makes one piece of {SMILE} and what stands behind <FILL_ME> \('xy'\)"):
        infill_ids(tokenizer, "a", "xy")


# --- Prompts with a gap ---


@pytest.mark.parametrize(
    "prompt", [FILL_ME, f"a{FILL_ME}", f"{FILL_ME} b", f"def f():\n    {FILL_ME}\n", f"<{FILL_ME}>"]
)
def test_a_prompt_is_split_at_its_gap(prompt: str) -> None:
    prefix, suffix = split_prompt(prompt, 0)
    assert prefix + FILL_ME + suffix == prompt


@pytest.mark.parametrize(
    ("prompt", "says"),
    [
        ("def f():", "prompt 3 cannot be infilled: <FILL_ME> is not in it; write it once, where text is wanted, as in"),
        ("", "prompt 3 cannot be infilled: <FILL_ME> is not in it"),
        ("<fill_me>", "prompt 3 cannot be infilled: <FILL_ME> is not in it"),
        (f"a {FILL_ME} b {FILL_ME}", "prompt 3 cannot be infilled: <FILL_ME> is in it 2 times; write it once"),
        (FILL_ME * 3, "prompt 3 cannot be infilled: <FILL_ME> is in it 3 times"),
        (None, "prompt 3 is None; wanted a text"),
        ([FILL_ME], "prompt 3 is ['<FILL_ME>']; wanted a text"),
    ],
)
def test_a_prompt_without_one_gap_is_refused_by_its_index(prompt: object, says: str) -> None:
    with pytest.raises(RefusedError, match=re.escape(says)):
        split_prompt(prompt, 3)


# --- Models that cannot ---


def params_of(dim: int, n_layers: int) -> Params:
    return Params(
        dim=dim,
        n_layers=n_layers,
        n_heads=32,
        n_kv_heads=32,
        ffn_dim=4 * dim,
        vocab_size=32016,
        norm_eps=1e-5,
        rope_theta=1e6,
        rope_scaling=None,
        rope_reason="",
    )


@pytest.mark.parametrize(("dim", "n_layers"), [(4096, 32), (5120, 40), (8192, 32), (4096, 80)])
def test_a_model_with_the_marks_can_infill(code: Tokenizer, dim: int, n_layers: int) -> None:
    check_can_infill(params_of(dim, n_layers), code)


@pytest.mark.parametrize(("n_layers", "name"), [(48, "34B"), (80, "70B")])
def test_code_llamas_that_were_not_trained_to_infill_are_refused_by_their_sizes(
    code: Tokenizer, n_layers: int, name: str
) -> None:
    says = (
        f"the model has dim 8192 and {n_layers} layers, the sizes of Code Llama {name}; Code Llama 34B and 70B were "
        "not trained to infill: use Code Llama 7B or 13B, or their Instruct"
    )
    with pytest.raises(RefusedError, match=re.escape(says)):
        check_can_infill(params_of(8192, n_layers), code)


@pytest.mark.parametrize("n_layers", [32, 48, 80])
def test_a_tokenizer_without_the_marks_is_refused_with_who_has_none(
    tokenizer: Tokenizer, tmp_path: Path, n_layers: int
) -> None:
    llama_3 = open_tokenizer(tiny.write_tiktoken(tmp_path / "tokenizer.model", tiny.train_ranks()))
    for each in (tokenizer, llama_3):
        says = (
            f"{each.path}: has no \u2581<PRE>, \u2581<MID>, \u2581<SUF>, \u2581<EOT>, without which a model cannot "
            "infill: Llama 2 and 3 and Code Llama - Python have none, and Code Llama 34B and 70B were not trained to "
            "infill; use Code Llama 7B or 13B"
        )
        with pytest.raises(RefusedError, match=re.escape(says)):
            check_can_infill(params_of(8192, n_layers), each)


def test_a_tokenizer_that_lacks_one_mark_is_refused(tmp_path: Path) -> None:
    tokenizer = open_tokenizer(trained(tmp_path / "tokenizer.model", user_defined_symbols=[PRE, MID, EOT]))
    with pytest.raises(RefusedError, match="has no \u2581<SUF>, without which"):
        check_can_infill(params_of(4096, 32), tokenizer)
