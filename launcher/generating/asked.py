"""What the user gave: prompts and dialogs, from the command line or from a file. Without torch."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from launcher.settings.schema import FileName
from model.checkpoint.files import open_regular
from parallel.errors import RefusedError

# Some editors begin a file with it.
_BOM = "\ufeff"


@dataclass(frozen=True, slots=True)
class Asked:
    """An item of a list or a line of a file, as it was given; `error` says why it cannot be taken.

    `item` is its kind and number ("prompt 3"), as in its answer; `place` the file and line that it comes from.
    """

    item: str
    value: object
    place: str = ""
    error: str | None = None

    @property
    def name(self) -> str:
        return f"{self.place} ({self.item})" if self.place else self.item


# What a JSON value holds, or what is wrong with it.
_Parse = Callable[[object], tuple[object, str | None]]


def read_prompts(given: Sequence[str]) -> list[Asked]:
    """The texts of `--prompts`: as given, or the lines of @FILE.txt, or the "prompt" of each line of @FILE.jsonl.

    RefusedError names the file where there is nothing to be had from it.
    """
    if (path := named_file(given)) is not None:
        return _lines(path, "prompt", _prompt_of)
    if not given:
        raise RefusedError("--prompts is an empty list; give one prompt or more")
    return [Asked(f"prompt {index}", text) for index, text in enumerate(given)]


def read_dialogs(given: Sequence[object]) -> list[Asked]:
    """The dialogs of `--dialogs`: as given, or those of @FILE.json, or one a line of @FILE.jsonl."""
    path = named_file(given)
    if path is not None and path.suffix == ".jsonl":
        return _lines(path, "dialog", _dialog_of)
    if path is not None:
        text = read_text(path, "dialogs")
        try:
            given = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise RefusedError(f"--dialogs @{path}: is not valid JSON: {_reason(error)}") from None
    if not isinstance(given, list) or not given:
        raise RefusedError(
            f"--dialogs{f' @{path}' if path else ''}: wanted a list of one dialog or more, as "
            '[[{"role": "user", "content": "Hello"}]]'
        )
    # One dialog by itself is plainly meant as a list of one.
    dialogs = [given] if all(isinstance(item, dict) and "role" in item for item in given) else given
    place = str(path) if path is not None else ""
    return [Asked(f"dialog {index}", dialog, place) for index, dialog in enumerate(dialogs)]


def named_file(given: Sequence[object]) -> Path | None:
    """The file of `@FILE`; None where the things themselves were given."""
    first = given[0] if len(given) == 1 else None
    return Path(first[1:]) if isinstance(first, FileName) else None


def read_text(path: Path, flag: str) -> str:
    """The text of a file that a flag names. RefusedError names flag, file and line."""
    data = _read(path, flag)
    try:
        return data.decode("utf-8").removeprefix(_BOM)
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise RefusedError(f"--{flag} @{path}:{line}: {_not_utf8(error.start)}") from None


def _read(path: Path, flag: str) -> bytes:
    try:
        # Every rank reads it, so it must stay there to be read again.
        with open_regular(path) as file:
            return file.read()
    except RefusedError as error:
        raise RefusedError(f"--{flag} @{error}") from None
    except OSError as error:
        raise RefusedError(f"--{flag} @{path}: cannot be read: {error.strerror}") from None


def _lines(path: Path, kind: str, parse: _Parse) -> list[Asked]:
    """The lines of a file that are not empty; one that is wrong does not keep the others from being read."""
    found: list[Asked] = []
    start = 0
    take = _json_taker(parse) if path.suffix == ".jsonl" else _text
    for number, line in enumerate(_read(path, f"{kind}s").split(b"\n"), 1):
        value, error = take(line, start)
        if value is not None:
            found.append(Asked(f"{kind} {len(found)}", value, f"{path}:{number}", error))
        start += len(line) + 1
    if not found:
        raise RefusedError(f"--{kind}s @{path}: holds no {kind}s; write one a line")
    return found


def _text(line: bytes, start: int) -> tuple[str | None, str | None]:
    """A line as text, or None where it is empty; and what is wrong with it. `start`: where in the file it begins."""
    error = None
    try:
        text = line.decode("utf-8")
    except UnicodeDecodeError as reason:
        text, error = line.decode("utf-8", "replace"), _not_utf8(start + reason.start)
    text = (text if start else text.removeprefix(_BOM)).rstrip("\r")
    return (text if text.strip() else None), error


def _json_taker(parse: _Parse) -> Callable[[bytes, int], tuple[object, str | None]]:
    def take(line: bytes, start: int) -> tuple[object, str | None]:
        text, error = _text(line, start)
        if text is None or error is not None:
            return text, error
        try:
            value, error = parse(json.loads(text))
        except (ValueError, RecursionError) as reason:
            error = f"is not valid JSON: {_reason(reason)}"
        # What is no prompt is shown as it stands in the file.
        return (value if error is None else text), error

    return take


def _prompt_of(line: object) -> tuple[object, str | None]:
    if isinstance(line, dict) and isinstance(line.get("prompt"), str):
        return line["prompt"], None
    return line, 'wanted an object with a text, as {"prompt": "Once upon a time"}'


def _dialog_of(line: object) -> tuple[object, str | None]:
    if isinstance(line, dict):
        line = line.get("messages", line.get("dialog"))
    if isinstance(line, list):
        return line, None
    return line, 'wanted a list of messages, as [{"role": "user", "content": "Hello"}]'


def _not_utf8(byte: int) -> str:
    return f"is not UTF-8 text (byte {byte} of the file)"


def _reason(error: Exception) -> str:
    if isinstance(error, json.JSONDecodeError):
        return error.msg
    # Python reads no whole number of more than 4300 digits.
    return "nested too deeply" if isinstance(error, RecursionError) else "a number has too many digits"
