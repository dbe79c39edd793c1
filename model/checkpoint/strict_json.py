"""JSON files beside the weights, read strictly, and the ranges that their values must lie in."""

import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from model.checkpoint.files import open_regular, reading
from parallel.errors import RefusedError


@dataclass(frozen=True, slots=True)
class Field:
    """What a value must be: a type, and for numbers a range."""

    kind: type[int] | type[float] | type[bool]
    low: float = 0
    high: float = 0
    nullable: bool = False

    @property
    def wanted(self) -> str:
        if self.kind is bool:
            return "true or false"
        noun = "a whole number" if self.kind is int else "a finite number"
        return f"{noun} of {self.low:.15g} to {self.high:.15g}"

    def fits(self, value: object) -> bool:
        if value is None:
            return self.nullable
        if self.kind is bool or isinstance(value, bool):
            return self.kind is bool and isinstance(value, bool)
        numeric = int if self.kind is int else int | float
        return isinstance(value, numeric) and self.low <= value <= self.high

    def check(self, path: Path, key: str, value: object) -> None:
        """RefusedError naming file, key and value where `value` does not fit."""
        if not self.fits(value):
            raise RefusedError(f"{path}: {key} is {shown(value)}; wanted {self.wanted}")


def shown(value: object) -> str:
    """A value of a JSON file, as a message shows it."""
    return json.dumps(value)[:80]


def read_json_object(path: Path, example: str, max_bytes: int = 2**20) -> dict[str, Any]:
    """The object that a JSON file holds. RefusedError says what it is instead, or where it is broken.

    `example`: the start of a right one, for the message.
    """
    with open_regular(path) as file, reading(path):
        data = file.read(max_bytes + 1)
    if len(data) > max_bytes:
        raise RefusedError(f"{path}: has more than {max_bytes} bytes, which is no table of sizes; download it again")
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise RefusedError(f"{path}: is not UTF-8 text (byte {error.start}); download it again") from None
    start = text.lstrip()[:40].lower()
    if start.startswith(("<!doctype", "<html", "<head", "<?xml")):
        raise RefusedError(f"{path}: is a web page, not JSON (an error page saved by a download?); download it again")
    if start.startswith("version https://git-lfs"):
        raise RefusedError(f"{path}: is a Git LFS pointer, not the file; run `git lfs pull` in its repository")
    found = parse_json(path, text)
    if not isinstance(found, dict):
        raise RefusedError(f"{path}: holds {_kind_of(found)}; an object such as {example} is expected")
    return found


def parse_json(path: Path | str, text: str) -> Any:
    """JSON text of a file, no key given twice. RefusedError says where it is broken; `path` begins its text."""
    try:
        return json.loads(text, object_pairs_hook=lambda pairs: _without_repeats(path, pairs))
    except json.JSONDecodeError as error:
        raise RefusedError(f"{path}:{error.lineno}:{error.colno}: is not valid JSON: {error.msg}") from None
    except RefusedError:
        raise
    except (RecursionError, ValueError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else "a number of too many digits"
        raise RefusedError(f"{path}: is not valid JSON: {reason}") from None


def _without_repeats(path: Path | str, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        key = next(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)
        raise RefusedError(f"{path}: key '{key[:80]}' is given twice; keep one")
    return found


def _kind_of(value: object) -> str:
    names = {dict: "an object", list: "a list", str: "a string", bool: "a boolean", type(None): "null"}
    return names.get(type(value), "a number")
