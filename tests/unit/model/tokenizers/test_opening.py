"""Which file is a folder's tokenizer, and what kind it is; files that are none."""

import re
from pathlib import Path

import pytest

from model.tokenizers.base import Tokenizer
from model.tokenizers.opening import find_tokenizer, is_tiktoken, open_tokenizer
from parallel.errors import RefusedError


def test_the_tokenizer_is_looked_for_in_the_folder_and_then_one_folder_up(tmp_path: Path) -> None:
    folder = tmp_path / "download" / "8B"
    (folder / "original").mkdir(parents=True)
    assert find_tokenizer(folder) is None
    # From the last choice to the first.
    for path in (
        folder.parent / "tokenizer.json",
        folder.parent / "tokenizer.model",
        folder / "original" / "tokenizer.model",
        folder / "tokenizer.json",
        folder / "tokenizer.model",
    ):
        path.touch()
        assert find_tokenizer(folder) == path


def test_a_link_that_leads_nowhere_is_refused_rather_than_passed_over(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").symlink_to(tmp_path / "blob")
    (tmp_path / "tokenizer.json").write_text("{}")
    found = find_tokenizer(tmp_path)
    assert found == tmp_path / "tokenizer.model"
    with pytest.raises(RefusedError, match=r"tokenizer\.model: is a link to .*blob, which does not exist"):
        open_tokenizer(found)


def test_the_kind_is_told_by_the_content_whatever_the_name(
    tmp_path: Path, tokenizer: Tokenizer, llama3: Tokenizer, llama3_json: Tokenizer
) -> None:
    assert [one.kind for one in (tokenizer, llama3, llama3_json)] == ["SentencePiece", "tiktoken", "tokenizer.json"]
    for name in ("tokenizer.model", "tokenizer.json", "x"):
        for one in (tokenizer, llama3, llama3_json):
            path = tmp_path / name
            path.write_bytes(one.path.read_bytes())
            assert open_tokenizer(path).kind == one.kind
            assert is_tiktoken(path) == (one is llama3)


def test_a_json_file_may_begin_with_white_space(tmp_path: Path, llama3_json: Tokenizer) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_bytes(b"\n {\n  " + llama3_json.path.read_bytes()[1:])
    assert open_tokenizer(path).n_words == llama3_json.n_words


def test_a_vocabulary_of_another_size_is_refused_with_both_sizes(tokenizer: Tokenizer, llama3: Tokenizer) -> None:
    for one, size in ((tokenizer, 360), (llama3, 632)):
        one.check_vocabulary(size)
        for rows in (size - 1, size + 1, 512, 640):
            with pytest.raises(RefusedError, match=rf"has {size} pieces, but the model's embedding has {rows} rows"):
                one.check_vocabulary(rows)


def test_a_tokenizer_json_beside_one_that_does_not_fit_is_pointed_at(tmp_path: Path, tokenizer: Tokenizer) -> None:
    path = tmp_path / "tokenizer.model"
    path.write_bytes(tokenizer.path.read_bytes())
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(RefusedError, match=r"with --tokenizer_path, such as tokenizer\.json beside it$"):
        open_tokenizer(path).check_vocabulary(361)


@pytest.mark.parametrize("kind", ["tokenizer", "llama3"])
def test_an_id_that_the_tokenizer_does_not_have_is_refused(kind: str, request: pytest.FixtureRequest) -> None:
    one: Tokenizer = request.getfixturevalue(kind)
    for token in (-1, one.n_words, 2**70):
        says = f"{one.path}: asked for the text of token {token}; its tokens are 0 to {one.n_words - 1}"
        with pytest.raises(RefusedError, match=re.escape(says)):
            one.decode([5, token])
        with pytest.raises(RefusedError, match=re.escape(says)):
            one.decode(token)


def test_half_a_surrogate_pair_is_refused_with_its_byte(each: Tokenizer) -> None:
    with pytest.raises(RefusedError, match=re.escape(r"half a surrogate pair at byte 3 ('\ud83d')")):
        each.encode("aé\ud83d", bos=True, eos=False)


def test_one_id_decodes_as_a_list_of_it(each: Tokenizer) -> None:
    token = each.encode("stone", bos=False, eos=False)[-1]
    assert each.decode(token) == each.decode([token]) == each.decode((token,)) != ""
    assert each.decode([]) == each.decode(each.bos_id) == each.decode([each.bos_id, each.eos_id]) == ""


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"", "is empty (0 bytes); download it again"),
        (b"junk" * 100, "is not a SentencePiece model ("),
        (b"junk 7 7\n" * 100, "is not a SentencePiece model ("),
        (b"<!DOCTYPE html><html></html>", "a web page"),
        (b"version https://git-lfs.github.com/spec/v1\n", "is a Git LFS pointer"),
    ],
    ids=["empty", "junk", "lines of junk", "a web page", "a Git LFS pointer"],
)
def test_a_file_that_is_no_tokenizer_is_refused_in_a_sentence(tmp_path: Path, content: bytes, text: str) -> None:
    path = tmp_path / "tokenizer.model"
    path.write_bytes(content)
    with pytest.raises(RefusedError, match=re.escape(f"{path}: ") + ".*" + re.escape(text)):
        open_tokenizer(path)


def test_a_file_as_large_as_weights_is_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "consolidated.00.pth"
    with path.open("wb") as file:
        file.write(b"PK")
        file.truncate(2**40)
    with pytest.raises(
        RefusedError, match=r"\.pth: has 1099511627776 bytes, which no tokenizer has; give the tokenizer"
    ):
        open_tokenizer(path)


def test_a_missing_tokenizer_is_named(tmp_path: Path) -> None:
    with pytest.raises(RefusedError, match=r"tokenizer\.model: does not exist"):
        open_tokenizer(tmp_path / "tokenizer.model")
