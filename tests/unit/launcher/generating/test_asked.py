"""Prompts and dialogs as they are given: every line is read, and what is wrong with one is said of that one."""

from pathlib import Path

import pytest

from launcher.generating.asked import Asked, read_dialogs, read_prompts, read_text
from launcher.settings.schema import FileName
from parallel import RefusedError

HELLO = [{"role": "user", "content": "Hello"}]


def lines_of(path: Path, content: bytes) -> list[Asked]:
    path.write_bytes(content)
    return read_prompts([FileName(f"@{path}")])


def test_prompts_of_a_list_are_named_by_their_number() -> None:
    assert read_prompts(["a", "b"]) == [Asked("prompt 0", "a"), Asked("prompt 1", "b")]
    assert [asked.name for asked in read_prompts(["a", "b"])] == ["prompt 0", "prompt 1"]


def test_lines_of_a_text_are_named_by_their_place_and_number_and_empty_ones_are_no_prompts(tmp_path: Path) -> None:
    found = lines_of(tmp_path / "p.txt", b"\xef\xbb\xbf a cat \r\n\n \t\r\nan owl\n")
    assert [(asked.name, asked.value) for asked in found] == [
        (f"{tmp_path}/p.txt:1 (prompt 0)", " a cat "),
        (f"{tmp_path}/p.txt:4 (prompt 1)", "an owl"),
    ]


def test_a_line_of_json_may_hold_anything_that_a_text_may(tmp_path: Path) -> None:
    found = lines_of(tmp_path / "p.jsonl", '{"prompt": ""}\n{"id": 7, "prompt": "a\\nb\u2028c"}\r\n\n'.encode())
    assert [(asked.value, asked.error) for asked in found] == [("", None), ("a\nb\u2028c", None)]


def test_a_wrong_line_is_said_to_be_wrong_and_the_others_are_read(tmp_path: Path) -> None:
    wrong = {
        b'{"prompt" "b"}': "is not valid JSON: Expecting ':' delimiter",
        b"[" * 100_000: "is not valid JSON: nested too deeply",
        b"9" * 5000: "is not valid JSON: a number has too many digits",
        b'{"prompt": 5}': 'wanted an object with a text, as {"prompt": "Once upon a time"}',
        b'{"text": "b"}': 'wanted an object with a text, as {"prompt": "Once upon a time"}',
        b'"b"': 'wanted an object with a text, as {"prompt": "Once upon a time"}',
    }
    good = b'{"prompt": "a"}\n'
    found = lines_of(tmp_path / "p.jsonl", good + b"".join(line + b"\n" + good for line in wrong))
    assert [asked.value for asked in found[::2]] == ["a"] * (len(wrong) + 1)
    assert {str(asked.value).encode(): asked.error for asked in found[1::2]} == wrong


@pytest.mark.parametrize("name", ["p.txt", "p.jsonl"])
def test_a_line_that_is_no_utf_8_is_wrong_with_its_byte_in_the_file(name: str, tmp_path: Path) -> None:
    line = b'{"prompt": "a"}\n'
    found = lines_of(tmp_path / name, b"\xef\xbb\xbf" + line + b"ab\xff\n" + line)
    assert [asked.error for asked in found] == [None, f"is not UTF-8 text (byte {3 + len(line) + 2} of the file)", None]
    assert found[1].value == "ab\ufffd"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("p.txt", b"\n \n", "--prompts @{path}: holds no prompts; write one a line"),
        ("p.jsonl", b"", "--prompts @{path}: holds no prompts; write one a line"),
    ],
)
def test_a_file_without_prompts_is_refused(name: str, content: bytes, message: str, tmp_path: Path) -> None:
    with pytest.raises(RefusedError) as refused:
        lines_of(tmp_path / name, content)
    assert str(refused.value) == message.format(path=tmp_path / name)


def test_a_dialog_by_itself_is_a_list_of_one() -> None:
    assert read_dialogs(HELLO) == read_dialogs([HELLO]) == [Asked("dialog 0", HELLO)]


def test_dialogs_come_from_a_json_file_or_from_lines_of_several_kinds(tmp_path: Path) -> None:
    message = '[{"role": "user", "content": "Hello"}]'
    (tmp_path / "d.json").write_text(f"[{message}, {message}]")
    (tmp_path / "d.jsonl").write_text(f'{message}\n{{"messages": {message}}}\n{{"dialog": {message}}}\n{{"a": 1}}\n')
    assert [(asked.name, asked.value) for asked in read_dialogs([FileName(f"@{tmp_path}/d.json")])] == [
        (f"{tmp_path}/d.json (dialog {index})", HELLO) for index in range(2)
    ]
    *good, bad = read_dialogs([FileName(f"@{tmp_path}/d.jsonl")])
    assert [(asked.name, asked.value) for asked in good] == [
        (f"{tmp_path}/d.jsonl:{index + 1} (dialog {index})", HELLO) for index in range(3)
    ]
    assert (bad.value, bad.error) == ('{"a": 1}', f"wanted a list of messages, as {message}")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"[", "--dialogs @{path}: is not valid JSON: Expecting value"),
        (b"{}", "--dialogs @{path}: wanted a list of one dialog or more, as " + f"{[HELLO]}".replace("'", '"')),
        (b"[]\n\xff", "--dialogs @{path}:2: is not UTF-8 text (byte 3 of the file)"),
    ],
)
def test_a_file_of_dialogs_that_is_none_is_refused(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "d.json"
    path.write_bytes(content)
    with pytest.raises(RefusedError) as refused:
        read_dialogs([FileName(f"@{path}")])
    assert str(refused.value) == message.replace("{path}", str(path))


def test_a_text_to_be_scored_loses_its_byte_order_mark_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_bytes("\ufeff a\r\n\n日本\n".encode())
    assert read_text(tmp_path / "t.txt", "text") == " a\r\n\n日本\n"
