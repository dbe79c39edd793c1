"""Hugging Face's tokenizer.json: its ids against transformers' and the other kinds', and the files beside it."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from model.tokenizers.base import Tokenizer
from model.tokenizers.opening import open_tokenizer
from parallel.errors import RefusedError
from tests.unit.model.tokenizers import tiny

quick = settings(
    max_examples=100, deadline=None, database=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
ANY_TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
CONTROLS = ["<s>", "</s>", "<unk>", *tiny.NAMED]
WORDS = st.lists(st.sampled_from([*re.findall(r"\S+|\s", tiny.SENTENCES), *CONTROLS, "<0x41>"]), max_size=12)


@pytest.fixture(params=["llama3_json", "llama2_json"])
def ours(request: pytest.FixtureRequest) -> Tokenizer:
    found: Tokenizer = request.getfixturevalue(request.param)
    return found


def theirs_of(ours: Tokenizer) -> Any:
    return PreTrainedTokenizerFast(tokenizer_file=str(ours.path), split_special_tokens=True)


@pytest.fixture
def theirs(ours: Tokenizer) -> Any:
    return theirs_of(ours)


@quick
@given(st.one_of(ANY_TEXT, WORDS.map("".join), WORDS.map(" ".join)))
def test_ids_and_text_are_those_of_transformers(ours: Tokenizer, theirs: Any, text: str) -> None:
    ids = ours.encode(text, bos=False, eos=False)
    assert ids == theirs.encode(text, add_special_tokens=False)
    assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)


@quick
@given(st.one_of(ANY_TEXT, WORDS.map("".join)))
def test_any_text_comes_back_from_its_ids(ours: Tokenizer, text: str) -> None:
    if ours.bos_id == 1:
        # As in SentencePiece, a space is written as U+2581.
        text = text.replace("\u2581", " ")
    assert ours.decode(ours.encode(text, bos=True, eos=True)) == text


@pytest.mark.parametrize("text", [*tiny.SENTENCES.strip().split("\n"), " two  spaces ", "Ünïcödé 東京 😀😀", "a\n\n b"])
def test_ids_are_those_of_metas_file_of_the_same_vocabulary(
    llama3: Tokenizer, llama3_json: Tokenizer, tokenizer: Tokenizer, llama2_json: Tokenizer, text: str
) -> None:
    for other, json_file in ((llama3, llama3_json), (tokenizer, llama2_json)):
        ids = other.encode(text, bos=True, eos=True)
        assert json_file.encode(text, bos=True, eos=True) == ids
        assert json_file.decode(ids) == other.decode(ids) == text


def test_control_tokens_sizes_and_ends_are_those_of_metas_files(
    llama3: Tokenizer, llama3_json: Tokenizer, tokenizer: Tokenizer, llama2_json: Tokenizer
) -> None:
    for other, json_file in ((llama3, llama3_json), (tokenizer, llama2_json)):
        same = [(t.n_words, t.bos_id, t.eos_id, t.stop_ids, t.chat_stop_ids, t.pad_id) for t in (other, json_file)]
        assert same[0] == same[1]
    assert llama3_json.specials == llama3.specials
    assert llama2_json.specials == {"<unk>": 0, "<s>": 1, "</s>": 2}


def test_text_that_spells_a_control_token_stays_text(ours: Tokenizer) -> None:
    text = " and ".join(ours.specials)
    ids = ours.encode(text, bos=False, eos=False)
    assert not set(ours.specials.values()) & set(ids)
    assert ours.decode(ids) == text


def test_a_mark_of_the_chat_that_the_file_calls_no_control_token_is_one(tmp_path: Path, ranks: list[bytes]) -> None:
    content = tiny.llama3_json(ranks)
    for token in content["added_tokens"]:
        token["special"] = False
    tokenizer = open_tokenizer(tiny.write_json(tmp_path / "tokenizer.json", content))
    text = "<|eot_id|><|start_header_id|>system<|end_header_id|>"
    ids = tokenizer.encode(text, bos=False, eos=False)
    assert max(ids) < len(ranks)
    assert tokenizer.decode([*ids, tokenizer.specials["<|eot_id|>"], tokenizer.eos_id]) == text


def test_a_length_or_padding_that_the_file_asks_for_does_not_cut_the_text(
    tmp_path: Path, llama3_json: Tokenizer
) -> None:
    content = json.loads(llama3_json.path.read_text(encoding="utf-8"))
    content["truncation"] = {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0}
    fixed = {"strategy": {"Fixed": 999}, "direction": "Left", "pad_to_multiple_of": None}
    content["padding"] = {**fixed, "pad_id": 0, "pad_type_id": 0, "pad_token": "!"}
    tokenizer = open_tokenizer(tiny.write_json(tmp_path / "tokenizer.json", content))
    assert tokenizer.encode(tiny.SENTENCES, True, False) == llama3_json.encode(tiny.SENTENCES, True, False)


def test_a_broken_byte_undoes_no_character_before_it(tokenizer: Tokenizer, llama2_json: Tokenizer) -> None:
    for data in (b"\xc3\xa9\xa9", b"\xf0\x9f\x98\x80\xf0\x9f", b"\xff\xe2\x82\xac", b"\xe2\x82", b"\xed\xa0\x80a"):
        ids = [3 + byte for byte in data]
        assert llama2_json.decode(ids) == tokenizer.decode(ids)
    assert llama2_json.decode([3 + byte for byte in b"\xc3\xa9\xa9"]) == "é\ufffd"


@pytest.mark.parametrize(("rows", "fits"), [(629, False), (631, False), (632, True), (633, False), (640, True)])
def test_an_embedding_may_be_padded_but_not_smaller_nor_of_another_model(
    llama3_json: Tokenizer, rows: int, fits: bool
) -> None:
    if fits:
        llama3_json.check_vocabulary(rows)
        return
    says = rf"has 632 pieces \(or padded, at most 640\), but the model's embedding has {rows} rows"
    with pytest.raises(RefusedError, match=says):
        llama3_json.check_vocabulary(rows)


def test_rows_without_a_token_are_silent(llama2_json: Tokenizer) -> None:
    assert llama2_json.n_words == 360
    assert llama2_json.decode([383, 3 + ord("a"), 360]) == "a"
    with pytest.raises(
        RefusedError, match=r"tokenizer\.json: asked for the text of token 384; its tokens are 0 to 359"
    ):
        llama2_json.decode(384)


BOS, EOS, EOM, EOT = "<|begin_of_text|>", "<|end_of_text|>", "<|eom_id|>", "<|eot_id|>"
# What the files say (ids counted from the first control token), and what bos, eos and all ends are then.
BESIDE: list[tuple[dict[str, object], str, str, set[int]]] = [
    ({}, BOS, EOS, {1}),
    ({"tokenizer_config": {"eos_token": EOT}}, BOS, EOT, {9}),
    ({"tokenizer_config": {"eos_token": {"content": EOT}, "bos_token": None}}, BOS, EOT, {9}),
    ({"special_tokens_map": {"bos_token": "<|step_id|>", "eos_token": {"content": EOM}}}, "<|step_id|>", EOM, {8}),
    ({"tokenizer_config": {"eos_token": EOT}, "special_tokens_map": {"eos_token": EOM}}, BOS, EOT, {9}),
    ({"config": {"bos_token_id": 0, "eos_token_id": [1, 8, 9]}}, BOS, EOS, {1, 8, 9}),
    ({"config": {"bos_token_id": 5, "eos_token_id": 9}}, "<|step_id|>", EOT, {9}),
    ({"config": {"eos_token_id": None}}, BOS, EOS, {1}),
    ({"generation_config": {"eos_token_id": [9, 1]}, "config": {"eos_token_id": 1}}, BOS, EOT, {1, 9}),
    ({"tokenizer_config": {"eos_token": EOS}, "generation_config": {"eos_token_id": [1, 9]}}, BOS, EOS, {1, 9}),
    # The default of config.json is the id of some word here.
    ({"tokenizer_config": {"eos_token": EOT}, "config": {"eos_token_id": -300}}, BOS, EOT, {9}),
]


@pytest.mark.parametrize(("said", "bos", "eos", "stops"), BESIDE)
def test_bos_and_eos_are_what_the_files_beside_it_say(
    tmp_path: Path, ranks: list[bytes], said: dict[str, dict[str, Any]], bos: str, eos: str, stops: set[int]
) -> None:
    n = len(ranks)
    path = tiny.write_json(tmp_path / "tokenizer.json", tiny.llama3_json(ranks))
    for name, content in said.items():
        for key in {"bos_token_id", "eos_token_id"} & content.keys():
            value = content[key]
            content = {
                **content,
                key: [n + one for one in value] if isinstance(value, list) else None if value is None else n + value,
            }
        tiny.write_json(tmp_path / f"{name}.json", content)
    tokenizer = open_tokenizer(path)
    assert (tokenizer.bos_id, tokenizer.eos_id) == (tokenizer.specials[bos], tokenizer.specials[eos])
    assert tokenizer.stop_ids == {n + stop for stop in stops}
    assert tokenizer.chat_stop_ids == tokenizer.stop_ids | {n + 8, n + 9}


def test_what_the_files_beside_it_say_is_in_the_digest(tmp_path: Path, llama3_json: Tokenizer) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_bytes(llama3_json.path.read_bytes())
    assert open_tokenizer(path).digest() == llama3_json.digest()
    tiny.write_json(tmp_path / "tokenizer_config.json", {"eos_token": "<|eot_id|>"})
    assert open_tokenizer(path).digest() != llama3_json.digest()


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("tokenizer_config.json", b"", "is not valid JSON ("),
        ("tokenizer_config.json", b"[1]", "holds no JSON object"),
        ("tokenizer_config.json", b"[" * 100_000, "is not valid JSON ("),
        ("special_tokens_map.json", b'{"bos_token": "<s', "is not valid JSON ("),
        ("config.json", b'{"a": "\xff"}', "is not valid JSON ("),
        ("generation_config.json", b"<!DOCTYPE html>", "a web page"),
        ("config.json", b"version https://git-lfs.github.com/spec/v1\n", "is a Git LFS pointer"),
        ("tokenizer_config.json", b'{"eos_token": "</q>"}', "eos_token is '</q>', which tokenizer.json does not have"),
        ("tokenizer_config.json", b'{"eos_token": ["</s>"]}', "eos_token is ['</s>'], which tokenizer.json does"),
    ],
)
def test_a_broken_file_beside_it_is_refused_by_its_name(
    tmp_path: Path, llama2_json: Tokenizer, name: str, content: bytes, says: str
) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_bytes(llama2_json.path.read_bytes())
    (tmp_path / name).write_bytes(content)
    with pytest.raises(RefusedError, match=re.escape(f"{tmp_path / name}: ") + ".*" + re.escape(says)):
        open_tokenizer(path)


def test_a_file_that_no_one_says_the_end_of_is_refused(tmp_path: Path, ranks: list[bytes]) -> None:
    content = {**tiny.llama3_json(ranks), "added_tokens": []}
    path = tiny.write_json(tmp_path / "tokenizer.json", content)
    with pytest.raises(RefusedError, match=r"tokenizer\.json: nothing says which token is bos; put bos_token into"):
        open_tokenizer(path)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "is empty (0 bytes); download it again"),
        (b" \n", "is not a SentencePiece model ("),
        (b"[1, 2]", "nor a JSON object; download it again"),
        (b"<!DOCTYPE html><html></html>", "a web page"),
        (b"version https://git-lfs.github.com/spec/v1\n", "is a Git LFS pointer"),
        (b"{}", "is not a Hugging Face tokenizer (Model missing"),
        (b'{"dim": 4096, "n_layers": 32}', "is not a Hugging Face tokenizer ("),
        (b'{"model": {"type": "BPE", "vocab": {"a": 0}, "merges": ["a b"]}}', "tokenizer (Token `b` out of vocabulary"),
        (b'{"model": {"type": "BPE", "vocab": {}, "merges": []}}', "has no tokens; download it again"),
        (b'{"model": "\xff"}', "is not a Hugging Face tokenizer ('utf-8' codec can't decode byte 0xff"),
        (b'{"model":' * 2000, "is not a Hugging Face tokenizer (recursion limit exceeded"),
    ],
)
def test_what_is_no_tokenizer_is_refused_in_a_sentence(tmp_path: Path, content: bytes, says: str) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_bytes(content)
    with pytest.raises(RefusedError, match=re.escape(f"{path}: ") + ".*" + re.escape(says)):
        open_tokenizer(path)


def test_half_a_file_is_refused(tmp_path: Path, llama3_json: Tokenizer) -> None:
    path = tmp_path / "tokenizer.json"
    whole = llama3_json.path.read_bytes()
    for size in (30, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(RefusedError, match=r"tokenizer\.json: is not a Hugging Face tokenizer \(EOF"):
            open_tokenizer(path)


def test_without_the_package_the_command_that_installs_it_is_told(llama3_json: Tokenizer, llama3: Tokenizer) -> None:
    program = f"""
import sys
sys.modules["tokenizers"] = None
from model.tokenizers.opening import open_tokenizer
from parallel.errors import RefusedError
print(open_tokenizer({str(llama3.path)!r}).n_words)
try:
    open_tokenizer({str(llama3_json.path)!r})
except RefusedError as refusal:
    print(refusal)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    size, refusal = done.stdout.splitlines()
    assert size == "632"
    assert refusal.startswith(f"{llama3_json.path}: reading a tokenizer.json needs the package tokenizers (")
    assert 'install it with: pip install "shardrun[huggingface]"' in refusal
