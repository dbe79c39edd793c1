"""Tokenizers out of GGUF files: the same ids as those of the files that they were made from."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from model.gguf.container import read_container
from model.gguf.tokenizer import tokenizer_note, write_tokenizer
from model.tokenizers.base import Tokenizer
from model.tokenizers.opening import open_tokenizer
from parallel.errors import RefusedError
from tests.gguf_files import Change, add_byte_pairs, add_sentencepiece
from tests.unit.model.tokenizers import tiny

LLAMA_2 = Path(__file__).resolve().parents[5] / "shared" / "models" / "stories15M" / "tokenizer.model"
quick = settings(
    max_examples=200, deadline=None, database=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
WORDS = st.lists(st.sampled_from([*re.findall(r"\S+|\s", tiny.SENTENCES), "'LL", "\r\n", "   ", "999"]), max_size=12)
ANY_TEXT = st.one_of(st.text(st.characters(exclude_categories=["Cs", "Cn"]), max_size=40), WORDS.map("".join))


def write(path: Path, *changes: Change) -> Path:
    """A GGUF file without weights."""
    writer = gguf.GGUFWriter(path, "llama")
    for change in changes:
        change(writer)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def written(folder: Path, *changes: Change) -> Tokenizer:
    """The tokenizer that is written for a GGUF file with these keys."""
    name = write_tokenizer(write(folder / "x.gguf", *changes), folder)
    assert name is not None
    return open_tokenizer(folder / name)


def change_list(key: str, change: Callable[[list[Any]], object]) -> Change:
    """Changes a list that the writer holds already."""

    def changed(writer: gguf.GGUFWriter) -> None:
        value = writer.kv_data[0][key].value = list(writer.kv_data[0][key].value)
        change(value)

    return changed


def put(name: str, place: int, value: object) -> Change:
    return change_list(f"tokenizer.ggml.{name}", lambda have: have.__setitem__(place, value))


def drop_last(name: str) -> Change:
    return change_list(f"tokenizer.ggml.{name}", lambda have: have.pop())


def drop_list(name: str) -> Change:
    return lambda writer: writer.kv_data[0].pop(f"tokenizer.ggml.{name}")


def set_id(name: str, value: int | None) -> Change:
    def changed(writer: gguf.GGUFWriter) -> None:
        writer.kv_data[0].pop(f"tokenizer.ggml.{name}", None)
        if value is not None:
            writer.add_uint32(f"tokenizer.ggml.{name}", value)

    return changed


@pytest.fixture(scope="module")
def again(tmp_path_factory: pytest.TempPathFactory, tokenizer: Tokenizer) -> Tokenizer:
    return written(tmp_path_factory.mktemp("again"), lambda writer: add_sentencepiece(writer, tokenizer.path))


@quick
@given(ANY_TEXT)
def test_sentencepiece_gives_the_same_ids_and_text(tokenizer: Tokenizer, again: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text, bos=True, eos=True)
    assert again.encode(text, bos=True, eos=True) == ids
    assert again.decode(ids) == tokenizer.decode(ids)


def test_sentencepiece_has_the_same_marks(tokenizer: Tokenizer, again: Tokenizer) -> None:
    assert again.kind == "SentencePiece"
    for name in ("n_words", "bos_id", "eos_id", "pad_id", "specials", "stop_ids"):
        assert getattr(again, name) == getattr(tokenizer, name)


@pytest.mark.skipif(not LLAMA_2.exists(), reason=f"needs {LLAMA_2.parent.name}, which is not part of the project")
def test_llama_2s_own_tokenizer_gives_the_same_ids(tmp_path: Path) -> None:
    truth = open_tokenizer(LLAMA_2)
    found = written(tmp_path, lambda writer: add_sentencepiece(writer, LLAMA_2))
    texts = [
        Path(__file__).read_text(),
        tiny.SENTENCES,
        "",
        " ",
        "  a",
        "a  ",
        "\n\n",
        "\u2581",
        "<s></s><0x0A>",
        "\0a",
    ]
    texts += ["".join(map(chr, range(start, start + 256))) for start in (0, 0x400, 0x3000, 0x4E00, 0xFF00, 0x1F600)]
    for text in texts:
        assert found.encode(text, bos=True, eos=False) == truth.encode(text, bos=True, eos=False)
    every = list(range(truth.n_words))
    assert [found.decode([1, token]) for token in every] == [truth.decode([1, token]) for token in every]


def test_no_space_is_put_first_where_the_file_says_so(tmp_path: Path, tokenizer: Tokenizer) -> None:
    found = written(
        tmp_path,
        lambda writer: add_sentencepiece(writer, tokenizer.path),
        lambda writer: writer.add_add_space_prefix(False),
    )
    assert found.encode(" the", bos=False, eos=False) == tokenizer.encode("the", bos=False, eos=False)
    assert found.encode("the", bos=False, eos=False) != tokenizer.encode("the", bos=False, eos=False)


def test_rows_without_a_token_and_an_end_that_is_a_word_are_kept(tmp_path: Path, tokenizer: Tokenizer) -> None:
    """As the converter fills up a vocabulary, and as chat models are made that end a turn with a mark of their own."""
    more = {"tokens": ["<|im_end|>", "[PAD361]"], "scores": [-1000.0, -10000.0], "token_type": [4, 5]}
    found = written(
        tmp_path,
        lambda writer: add_sentencepiece(writer, tokenizer.path),
        *(change_list(f"tokenizer.ggml.{name}", lambda have, add=add: have.extend(add)) for name, add in more.items()),
        set_id("eos_token_id", 360),
    )
    assert (found.n_words, found.bos_id, found.eos_id) == (362, 1, 360)
    text = "the stone<|im_end|> and [PAD361]"
    assert not {360, 361} & set(found.encode(text, bos=True, eos=False))
    assert found.encode(text, bos=True, eos=False) == tokenizer.encode(text, bos=True, eos=False)


def test_ids_that_an_old_file_does_not_give_are_llama_2s(tmp_path: Path, tokenizer: Tokenizer) -> None:
    names = ("bos_token_id", "eos_token_id", "unknown_token_id")
    found = written(
        tmp_path,
        lambda writer: add_sentencepiece(writer, tokenizer.path),
        *(set_id(name, None) for name in names),
    )
    assert (found.bos_id, found.eos_id) == (1, 2)


def llama_3(ranks: list[bytes]) -> dict[str, Any]:
    """A tokenizer.json of Llama 3 for these ranks, its control tokens named as Hugging Face names them."""
    content = tiny.llama3_json(ranks)
    reserved = (f"<|reserved_special_token_{number}|>" for number in range(256))
    for token in content["added_tokens"]:
        if token["content"].startswith("<|reserved") or token["content"] == "<|step_id|>":
            token["content"] = next(reserved)
    return content


@pytest.mark.parametrize("named", [tiny.llama3_json, llama_3])
def test_llama_3s_file_comes_back_to_the_bit(tmp_path: Path, named: Callable[[list[bytes]], dict[str, Any]]) -> None:
    ranks = tiny.train_ranks()
    found = written(tmp_path, lambda writer: add_byte_pairs(writer, named(ranks)))
    assert found.kind == "tiktoken"
    assert found.path.read_bytes() == b"".join(tiny.tiktoken_lines(ranks))
    assert found.n_words == len(ranks) + 256


def rename(content: dict[str, Any], place: int, name: str) -> None:
    content["added_tokens"][place]["content"] = name


def add_token(content: dict[str, Any], name: str, special: bool) -> None:
    number = content["added_tokens"][-1]["id"] + 1
    content["added_tokens"].append(tiny.added(number, name, special))


OTHERWISE: dict[str, Callable[[dict[str, Any]], object]] = {
    "a mark of its own": lambda content: rename(content, 2, "<|im_start|>"),
    "a token more": lambda content: add_token(content, "<|im_end|>", True),
    "a word more": lambda content: add_token(content, "<tool>", False),
    "a merge less": lambda content: content["model"]["merges"].pop(),
    "merges in another order": lambda content: content["model"]["merges"].reverse(),
}


@pytest.mark.parametrize("how", OTHERWISE)
def test_what_metas_file_cannot_say_becomes_a_tokenizer_json(tmp_path: Path, how: str) -> None:
    content = tiny.llama3_json(tiny.train_ranks())
    OTHERWISE[how](content)
    (tmp_path / "truth").mkdir()
    truth = open_tokenizer(tiny.write_json(tmp_path / "truth" / "tokenizer.json", content))
    found = written(tmp_path, lambda writer: add_byte_pairs(writer, content))
    assert found.path.name == "tokenizer.json"
    assert (found.n_words, found.bos_id, found.specials) == (truth.n_words, truth.bos_id, truth.specials)
    assert found.eos_id == found.specials["<|eot_id|>"]
    text = tiny.SENTENCES + "<|im_start|>user<tool><|im_end|><|eot_id|>"
    ids = truth.encode(text, bos=True, eos=False)
    assert found.encode(text, bos=True, eos=False) == ids
    assert found.decode(ids) == truth.decode(ids)


def test_the_ids_of_a_tokenizer_json_are_those_of_metas_file(tmp_path: Path) -> None:
    ranks = tiny.train_ranks()
    content = tiny.llama3_json(ranks)
    rename(content, 2, "<|im_start|>")
    found = written(tmp_path, lambda writer: add_byte_pairs(writer, content))
    truth = open_tokenizer(tiny.write_tiktoken(tmp_path / "truth.model", ranks))
    assert found.encode(tiny.SENTENCES, bos=True, eos=False) == truth.encode(tiny.SENTENCES, bos=True, eos=False)
    beside = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert (beside["bos_token"], beside["eos_token"]) == ("<|begin_of_text|>", "<|eot_id|>")


def test_a_chat_template_comes_along(tmp_path: Path, tokenizer: Tokenizer) -> None:
    written(
        tmp_path,
        lambda writer: add_sentencepiece(writer, tokenizer.path),
        lambda writer: writer.add_chat_template("{% for message in messages %}é{% endfor %}"),
    )
    assert (tmp_path / "chat_template.jinja").read_text("utf-8") == "{% for message in messages %}é{% endfor %}"


@pytest.mark.parametrize(
    ("model", "pre", "says"),
    [
        (None, None, "holds no tokenizer"),
        ("no_vocab", None, "holds no tokenizer"),
        ("gpt2", "qwen2", "its tokenizer is of the kind 'gpt2' ('qwen2'), which cannot be written as a file"),
        ("rwkv", None, "its tokenizer is of the kind 'rwkv', which cannot be written as a file"),
    ],
)
def test_a_kind_that_cannot_be_written_is_noted(tmp_path: Path, model: str | None, pre: str | None, says: str) -> None:
    def change(writer: gguf.GGUFWriter) -> None:
        if model is not None:
            writer.add_tokenizer_model(model)
            writer.add_token_list(["a", "b"])
        if pre is not None:
            writer.add_tokenizer_pre(pre)

    path = write(tmp_path / "x.gguf", change)
    note = tokenizer_note(read_container(path).metadata)
    assert note is not None and note.startswith(says)
    assert note.endswith("put the model's own into the new folder yourself")
    assert write_tokenizer(path, tmp_path) is None


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (drop_last("tokens"), "lacks tokenizer.ggml.token_type, one number"),
        (drop_last("scores"), "lacks tokenizer.ggml.scores, one number for each"),
        (drop_list("scores"), "lacks tokenizer.ggml.scores, one number for each"),
        (put("scores", 7, float("nan")), "holds what is no number of"),
        (put("token_type", 7, 9), "holds what is no number of 1 to 6"),
        (put("tokens", 9, b"<s>"), "token 9 is that of token 1 again"),
        (put("tokens", 9, b""), "is broken: token 9 is empty"),
        (put("tokens", 9, b"\xff"), r"holds b'\xff', not UTF-8"),
        (put("tokens", 9, b"<0x05>x"), "is not a SentencePiece model ("),
        (set_id("bos_token_id", 360), "bos_token_id is 360 of 360 tokens"),
    ],
)  # fmt: skip
def test_a_broken_vocabulary_is_refused(tmp_path: Path, tokenizer: Tokenizer, change: Change, says: str) -> None:
    with pytest.raises(RefusedError, match=r"x\.gguf: its tokenizer .*" + re.escape(says)) as refused:
        written(tmp_path, lambda writer: add_sentencepiece(writer, tokenizer.path), change)
    assert str(refused.value).endswith("; get the file again")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (put("merges", 3, "zzz q"), "merge 3 is 'zzz q', which is not"),
        (put("merges", 3, "t"), "merge 3 is 't', which is not of its"),
        (drop_list("merges"), "lacks tokenizer.ggml.merges, a list of texts"),
        (set_id("eos_token_id", 10**6), "eos_token_id is 1000000 of 632 tokens"),
        (set_id("bos_token_id", None), "bos_token_id is -1 of 632 tokens"),
    ],
)  # fmt: skip
def test_a_broken_vocabulary_of_llama_3_is_refused(tmp_path: Path, change: Change, says: str) -> None:
    content = tiny.llama3_json(tiny.train_ranks())
    rename(content, 2, "<|im_start|>")
    with pytest.raises(RefusedError, match=r"x\.gguf: its tokenizer .*" + re.escape(says)):
        written(tmp_path, lambda writer: add_byte_pairs(writer, content), change)
