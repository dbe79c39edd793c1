"""A tokenizer.model made into a tokenizer.json gives the same ids in Hugging Face's packages."""

import gzip
import json
import random
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
import tokenizers
from transformers import AutoTokenizer

from model.hugging_face.tokenizer_files import Untranslatable, tokenizer_files
from model.tokenizers.base import Tokenizer
from model.tokenizers.opening import open_tokenizer
from parallel.errors import RefusedError
from tests.unit.model.tokenizers import tiny

REPOSITORY = Path(__file__).resolve().parents[4]
SHARED = REPOSITORY.parent / "shared"
# Letters of several scripts, pictures, and spaces of other kinds.
ODD = "\u00e9\u00fc\u00df\u6f22\u5b57\U0001f642\U0001f389\u200d\u0410\u00a0\ufeff\u2581"
LETTERS = f"abcdefgh etaoin  \n\t\r.,'0123456789{ODD}"
RUNS = (" ", "a", "aa", "the", " the", "ha", "\n", "0", ".", "'s", "\t", "<s")


def texts(seed: int, count: int, prose: str = tiny.SENTENCES) -> list[str]:
    """Prose from anywhere, letters at random, and runs of the same, where ties between merges are."""
    rng = random.Random(seed)
    found = ["", " ", "  ", "\n", "a", " a ", "  a  b  "]
    while len(found) < count:
        start = rng.randrange(len(prose))
        found += [
            prose[start : start + rng.randrange(120)],
            "".join(rng.choice(LETTERS) for _ in range(rng.randrange(60))),
            "".join(rng.choice(RUNS) * rng.randrange(1, 12) for _ in range(rng.randrange(1, 8))),
        ]
    return found


def written(tokenizer: Path, folder: Path) -> Path:
    """A folder with what transformers needs to open a tokenizer."""
    for name, content in tokenizer_files(tokenizer, 2048).items():
        (folder / name).write_text(json.dumps(content))
    (folder / "config.json").write_text('{"model_type": "llama"}')
    return folder


def assert_same_ids(tokenizer: Path, folder: Path, samples: list[str]) -> None:
    ours = open_tokenizer(tokenizer)
    theirs = AutoTokenizer.from_pretrained(written(tokenizer, folder))
    for text in samples:
        ids = ours.encode(text, bos=True, eos=False)
        assert theirs(text).input_ids == ids, text
        assert theirs.decode(ids, skip_special_tokens=True) == ours.decode(ids), text
    assert (theirs.bos_token_id, theirs.eos_token_id) == (ours.bos_id, ours.eos_id)
    assert len(theirs) == ours.n_words
    assert theirs.model_max_length == 2048


def test_sentencepiece_ids_are_the_same_in_transformers(tokenizer: Tokenizer, tmp_path: Path) -> None:
    assert_same_ids(tokenizer.path, tmp_path, texts(1, 600))


def test_the_demo_models_ids_are_the_same_in_transformers(tmp_path: Path) -> None:
    assert_same_ids(REPOSITORY / "configs" / "demo" / "tokenizer.model", tmp_path, texts(2, 600))


@pytest.mark.parametrize("name", ["stories260K", "stories15M"])
def test_the_ids_of_llama_2s_own_tokenizer_are_the_same_in_transformers(name: str, tmp_path: Path) -> None:
    """stories15M has Meta's file; stories260K's drops repeated spaces."""
    path = SHARED / "models" / name / "tokenizer.model"
    stories = SHARED / "text" / "stories.txt.gz"
    if not path.is_file() or not stories.is_file():
        pytest.skip(f"the trained models and texts are not at {SHARED}; they lie beside the repository, not in it")
    with gzip.open(stories, "rt", encoding="utf-8") as file:
        prose = file.read(100_000)
    assert_same_ids(path, tmp_path, texts(3, 600, prose))


def test_tiktoken_ids_are_the_same_in_transformers(tmp_path: Path) -> None:
    path = tiny.write_tiktoken(tmp_path / "tokenizer.model", tiny.train_ranks())
    assert_same_ids(path, tmp_path, texts(4, 900))


def test_the_file_is_what_llama_3s_own_looks_like(tmp_path: Path) -> None:
    ranks = tiny.train_ranks()
    path = tiny.write_tiktoken(tmp_path / "tokenizer.model", ranks)
    ours, theirs = tokenizer_files(path, 2048)["tokenizer.json"], tiny.llama3_json(ranks)
    assert ours["model"]["vocab"] == theirs["model"]["vocab"]
    assert ours["pre_tokenizer"] == theirs["pre_tokenizer"]
    # The order of merges that make the same token does not follow from the ranks.
    assert sorted(ours["model"]["merges"]) == sorted(" ".join(pair) for pair in theirs["model"]["merges"])
    assert [added["id"] for added in ours["added_tokens"]] == [added["id"] for added in theirs["added_tokens"]]
    named = {added["content"]: added["id"] - len(ranks) for added in ours["added_tokens"]}
    assert {name: named[name] for name in tiny.NAMED} == tiny.NAMED


def test_control_tokens_are_whole_in_transformers(tmp_path: Path) -> None:
    path = tiny.write_tiktoken(tmp_path / "tokenizer.model", tiny.train_ranks())
    theirs = AutoTokenizer.from_pretrained(written(path, tmp_path))
    specials = open_tokenizer(path).specials
    text = "<|start_header_id|>user<|end_header_id|>\n\nrain<|eot_id|>"
    ids = theirs(text, add_special_tokens=False).input_ids
    assert [ids[0], ids[-1]] == [specials["<|start_header_id|>"], specials["<|eot_id|>"]]
    assert theirs.decode(ids) == text
    assert theirs.decode(ids, skip_special_tokens=True) == "user\n\nrain"


def trained(folder: Path, **how: Any) -> Path:
    (folder / "text.txt").write_text(tiny.SENTENCES * 3)
    usual = {"model_type": "bpe", "byte_fallback": True, "normalization_rule_name": "identity", "vocab_size": 340}
    sentencepiece.SentencePieceTrainer.train(
        input=str(folder / "text.txt"), model_prefix=str(folder / "tokenizer"), minloglevel=2, **{**usual, **how}
    )
    return folder / "tokenizer.model"


@pytest.mark.parametrize(
    "how",
    [
        {"remove_extra_whitespaces": True},
        {"add_dummy_prefix": False, "remove_extra_whitespaces": False},
        {"bos_id": 3, "eos_id": 4, "unk_id": 0, "pad_id": 1, "bos_piece": "[begin]"},
    ],
    ids=["spaces dropped", "no space first", "other ids"],
)
def test_sentencepiece_models_of_other_settings_give_the_same_ids(tmp_path: Path, how: dict[str, Any]) -> None:
    samples = texts(5, 300)
    path = trained(tmp_path, **how)
    made = tokenizers.Tokenizer.from_str(json.dumps(tokenizer_files(path, 2048)["tokenizer.json"]))
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(path))
    for text in samples:
        assert made.encode(text, add_special_tokens=False).ids == pieces.encode(text), text
        assert made.encode(text).ids == [pieces.bos_id(), *pieces.encode(text)]


def test_code_llamas_marks_are_control_tokens(tmp_path: Path) -> None:
    marks = [f"\u2581<{name}>" for name in ("PRE", "MID", "SUF", "EOT")]
    path = trained(tmp_path, user_defined_symbols=marks)
    theirs = AutoTokenizer.from_pretrained(written(path, tmp_path))
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(path))
    assert theirs.convert_tokens_to_ids(marks) == [pieces.piece_to_id(mark) for mark in marks]
    assert theirs.decode([pieces.piece_to_id(marks[0])], skip_special_tokens=True) == ""
    # What somebody types stays text.
    assert not {*theirs("a <PRE> b <EOT>").input_ids} & {*theirs.convert_tokens_to_ids(marks)}
    assert theirs("the rain").input_ids == [1, *pieces.encode("the rain")]


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ({"model_type": "unigram"}, "does not merge pairs"),
        ({"byte_fallback": False}, "of another make than Llama's"),
        ({"normalization_rule_name": "nmt_nfkc"}, "that rewrites characters"),
        ({"user_defined_symbols": ["rain"]}, "with words of its user's"),
        ({"treat_whitespace_as_suffix": True}, "of another make than Llama's"),
    ],
)
def test_a_model_that_would_give_other_ids_is_not_translated(tmp_path: Path, how: dict[str, Any], says: str) -> None:
    with pytest.raises(Untranslatable, match=says):
        tokenizer_files(trained(tmp_path, **how), 2048)


def test_a_damaged_file_is_refused(tmp_path: Path) -> None:
    path = trained(tmp_path)
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(RefusedError, match=r"tokenizer\.model: is not a SentencePiece model"):
        tokenizer_files(path, 2048)
