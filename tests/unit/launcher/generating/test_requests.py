"""Requests: token ids that can be run, or a reason that names the prompt and where it stands."""

import json
import sys
from pathlib import Path

import pytest

from launcher.generating.requests import Request, digest_of, requests_of
from launcher.settings.flags import run_options
from model.chat import UNSAFE_ERROR
from model.tokenizers.base import Tokenizer
from model.tokenizers.opening import open_tokenizer
from parallel import RefusedError

TOKENIZER = Path(__file__).resolve().parents[4] / "configs" / "demo" / "tokenizer.model"


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return open_tokenizer(TOKENIZER)


def requests(tokenizer: Tokenizer, command: str = "complete", **flags: str) -> list[Request]:
    return requests_of(run_options(command, {"ckpt_dir": "d", "max_seq_len": "16", **flags}), tokenizer)


def refusal(tokenizer: Tokenizer, command: str = "complete", **flags: str) -> str:
    with pytest.raises(RefusedError) as refused:
        requests(tokenizer, command, **flags)
    return str(refused.value)


def test_a_request_has_the_tokens_of_its_prompt_behind_bos(tokenizer: Tokenizer) -> None:
    [request] = requests(tokenizer, prompts='["Once upon a time"]')
    assert request.tokens == [tokenizer.bos_id, *tokenizer.encode("Once upon a time", bos=False, eos=False)]
    assert (request.length, request.to_run) == (len(request.tokens), True)
    assert request.asked == {"prompt": "Once upon a time"}


LONG = "the old boat lay on the sand " * 4
# What of a line is wrong, and what is said of it behind its name.
BAD_LINES = {
    '{"prompt": "a': ": is not valid JSON: Unterminated string starting at",
    '{"text": "a"}': ': wanted an object with a text, as {"prompt": "Once upon a time"}',
    '{"prompt": "a\\udc00"}': (
        ": the text has half a surrogate pair at byte 1 ('\\udc00'), which is no character; take it out, or read the "
        "text as UTF-8"
    ),
    json.dumps({"prompt": LONG}): " has LENGTH tokens but max_seq_len is 16; shorten it, or raise --max_seq_len",
}


@pytest.mark.parametrize("line", BAD_LINES)
def test_a_bad_line_is_refused_with_its_place_and_number(line: str, tokenizer: Tokenizer, tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text(f'\n{{"prompt": "a cat"}}\n{line}\n')
    said = BAD_LINES[line].replace("LENGTH", str(1 + len(tokenizer.encode(LONG, bos=False, eos=False))))
    assert (
        refusal(tokenizer, prompts=f"@{path}") == f"{path}:3 (prompt 1){said}; --bad_lines skip leaves such lines out"
    )


def test_with_skip_bad_lines_have_their_error_and_the_others_their_tokens(tokenizer: Tokenizer, tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text("".join(f'{line}\n{{"prompt": "a cat"}}\n' for line in BAD_LINES))
    found = requests(tokenizer, prompts=f"@{path}", bad_lines="skip")
    assert [request.index for request in found] == list(range(2 * len(BAD_LINES)))
    for bad, good in zip(found[::2], found[1::2], strict=True):
        assert str(bad.error).startswith(f"{path}:{bad.index + 1} (prompt {bad.index})")
        assert (bad.to_run, bad.tokens, list(bad.asked)) == (False, [], ["prompt"])
        assert (good.to_run, good.error) == (True, None)
    assert [bad.asked["prompt"] for bad in found[::2]] == ['{"prompt": "a', '{"text": "a"}', "a\udc00", LONG]


@pytest.mark.parametrize(
    ("command", "flags", "message"),
    [
        ("complete", {"prompts": json.dumps(["a", "b\udc00"])}, "prompt 1: the text has half a surrogate pair"),
        ("complete", {"prompts": json.dumps(["a", LONG])}, "prompt 1 has "),
        ("infill", {"prompts": '["a"]'}, "prompt 0 cannot be infilled: <FILL_ME> is not in it; "),
        ("chat", {"dialogs": '[[{"role": "assistant", "content": "a"}]]'}, "dialog 0 has the roles assistant; wanted "),
        ("chat", {"dialogs": '[[{"role": "user"}]]'}, 'dialog 0, message 0: wanted {"role": '),
    ],
)
def test_an_item_of_a_list_is_named_by_its_number(
    command: str, flags: dict[str, str], message: str, tokenizer: Tokenizer
) -> None:
    assert refusal(tokenizer, command, **flags).startswith(message)


@pytest.mark.parametrize(
    ("command", "name", "line", "message"),
    [
        ("infill", "p.txt", "a", " (prompt 0) cannot be infilled: <FILL_ME> is not in it; "),
        ("chat", "d.jsonl", '[{"role": "assistant", "content": "a"}]', " (dialog 0) has the roles assistant; wanted "),
        ("chat", "d.jsonl", '[{"role": "user"}]', ' (dialog 0), message 0: wanted {"role": '),
        ("chat", "d.jsonl", "[]", " (dialog 0) is []; wanted a list of messages"),
    ],
)
def test_a_line_is_named_by_its_place_and_number(
    command: str, name: str, line: str, message: str, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    path = tmp_path / name
    path.write_text(f"{line}\n")
    flag = "dialogs" if command == "chat" else "prompts"
    assert refusal(tokenizer, command, **{flag: f"@{path}"}).startswith(f"{path}:1{message}")
    [request] = requests(tokenizer, command, **{flag: f"@{path}", "bad_lines": "skip"})
    assert request.asked == {"prompt": line}


def test_a_dialog_with_the_formats_own_tags_is_answered_without_the_model(tokenizer: Tokenizer) -> None:
    [request] = requests(tokenizer, "chat", dialogs='[[{"role": "user", "content": "[INST] a"}]]')
    assert (request.reply, request.to_run, request.tokens) == (UNSAFE_ERROR, False, [])


def test_a_digest_knows_the_requests_and_not_the_file_they_come_from(tokenizer: Tokenizer, tmp_path: Path) -> None:
    lines = ['{"prompt": "a cat"}', '{"prompt" 5}', '{"prompt": "an owl"}']

    def digest(name: str, *content: str) -> str:
        path = tmp_path / name
        path.write_text("\n".join(content))
        return digest_of(requests(tokenizer, prompts=f"@{path}", bad_lines="skip"))

    same = digest("a.jsonl", *lines)
    assert digest("b.jsonl", "", *lines) == same
    others = [digest("a.jsonl", *lines[:2]), digest("a.jsonl", *lines[::-1]), digest("a.jsonl", *lines, lines[0])]
    assert len({same, *others}) == 4


def test_a_request_holds_its_tokens_in_four_bytes_each(tokenizer: Tokenizer) -> None:
    [request] = requests(tokenizer, prompts=json.dumps(["boat " * 2000]), max_seq_len="10000")
    assert request.ids is not None
    assert sys.getsizeof(request.ids) < 4.3 * request.length
