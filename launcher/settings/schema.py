"""Typed settings: one description of each serves the flag, the YAML key, the check and the help text.

A setting is a field of a frozen dataclass made with `setting()`. What a user gives, a string of the
command line or a value of a YAML file, becomes the field's type here, or is refused with what was wanted.
"""

import dataclasses
import difflib
import json
import math
import types
import typing
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal

from parallel.errors import one_of


class Wanted(Exception):
    """A value does not fit. The text completes 'SETTING is VALUE; wanted ...'."""


class FileName(str):
    """`@FILE` in the place of a list, where the setting takes it; told apart from a list of one such text."""

    __slots__ = ()


@dataclass(frozen=True, slots=True)
class _Limits:
    help: str
    low: float
    high: float
    above: bool
    file: bool


def setting(
    help: str,
    *,
    default: Any = dataclasses.MISSING,
    low: float = -math.inf,
    high: float = math.inf,
    above: bool = False,
    file: bool = False,
) -> Any:
    """A dataclass field with its line of help and its limits; `above`: `low` itself is out; `file`: @FILE may stand
    for a list."""
    return dataclasses.field(default=default, metadata={"limits": _Limits(help, low, high, above, file)})


@dataclass(frozen=True, slots=True)
class Setting:
    """One field, ready to convert and to describe itself."""

    name: str
    kind: Any
    nullable: bool
    default: Any
    limits: _Limits

    @property
    def required(self) -> bool:
        return self.default is dataclasses.MISSING

    @property
    def is_flag(self) -> bool:
        return self.kind is bool

    def convert(self, raw: object, typed: bool) -> Any:
        """`raw` as this setting's type. `typed`: it comes from YAML and has a type; else it is a string."""
        if raw is None and self.nullable:
            return None
        converter = _CONVERTERS.get(_family(self.kind))
        assert converter is not None, f"no converter for {self.kind}"
        if self.limits.file and isinstance(raw, str) and raw.startswith("@"):
            return [FileName(raw)]
        value = converter(self, raw, typed)
        if isinstance(value, int | float) and not isinstance(value, bool):
            limits = self.limits
            below = value <= limits.low if limits.above else value < limits.low
            if not math.isfinite(value) or below or value > limits.high:
                raise Wanted(self.wanted)
        return value

    @property
    def wanted(self) -> str:
        """What fits, in words: 'a number of 0 to 10'."""
        family = _family(self.kind)
        if family == "choice":
            return one_of(list(typing.get_args(self.kind)))
        nouns = {
            "int": "a whole number",
            "float": "a number",
            "bool": "true or false",
            "str": "a text",
            "texts": 'a list of texts (JSON, as ["a", "b"])',
            "numbers": "a list of whole numbers (as 1,2 or JSON)",
            "list": "a list (JSON)",
        }
        low, high = self.limits.low, self.limits.high
        if self.limits.file:
            return f"{nouns[family]} or @FILE"
        if family not in ("int", "float") or (low, high) == (-math.inf, math.inf):
            return nouns[family]
        if high == math.inf:
            return f"{nouns[family]} above {low}" if self.limits.above else f"{nouns[family]}, {low} or more"
        return (
            f"{nouns[family]} above {low}, up to {high}" if self.limits.above else f"{nouns[family]} of {low} to {high}"
        )


def settings_of(section: type) -> dict[str, Setting]:
    """The settings of a section, by name."""
    hints = typing.get_type_hints(section)
    found = {}
    for field in dataclasses.fields(section):
        kind, nullable = hints[field.name], False
        if isinstance(kind, types.UnionType):
            kind, nullable = next(part for part in typing.get_args(kind) if part is not type(None)), True
        found[field.name] = Setting(field.name, kind, nullable, field.default, field.metadata["limits"])
    return found


def nearest(name: str, known: Iterable[str]) -> str:
    """'; did you mean 'x'?', or the names there are."""
    known = list(known)
    near = difflib.get_close_matches(name, known, 1, 0.6)
    return f"; did you mean '{near[0]}'?" if near else f"; there are {', '.join(known)}"


def _family(kind: Any) -> str:
    if typing.get_origin(kind) is Literal:
        return "choice"
    names = {
        int: "int",
        float: "float",
        bool: "bool",
        str: "str",
        list[str]: "texts",
        list[int]: "numbers",
        list[object]: "list",
    }
    return names[kind]


def _to_int(setting: Setting, raw: object, typed: bool) -> int:
    if isinstance(raw, int) and not isinstance(raw, bool):
        return raw
    text = str(raw).strip()
    digits = text.removeprefix("-")
    if typed or not (digits.isascii() and digits.isdecimal() and len(digits) < 20):
        raise Wanted(setting.wanted)
    return int(text)


def _to_float(setting: Setting, raw: object, typed: bool) -> float:
    if isinstance(raw, int | float) and not isinstance(raw, bool):
        return float(raw)
    try:
        if typed:
            raise ValueError
        return float(str(raw))
    except ValueError:
        raise Wanted(setting.wanted) from None


def _to_bool(setting: Setting, raw: object, typed: bool) -> bool:
    if isinstance(raw, bool):
        return raw
    known = {"true": True, "false": False, "1": True, "0": False, "yes": True, "no": False}
    if typed or str(raw).lower() not in known:
        raise Wanted(setting.wanted)
    return known[str(raw).lower()]


def _to_str(setting: Setting, raw: object, _typed: bool) -> str:
    if not isinstance(raw, str) or raw == "":
        raise Wanted(setting.wanted if raw != "" else f"{setting.wanted} that is not empty")
    return raw


def _to_choice(setting: Setting, raw: object, _typed: bool) -> str:
    if raw not in typing.get_args(setting.kind):
        raise Wanted(setting.wanted)
    return str(raw)


def _to_list(setting: Setting, raw: object) -> list[Any]:
    """A list as it is, or from JSON text."""
    if isinstance(raw, list):
        return raw
    try:
        found = json.loads(str(raw))
    except (ValueError, RecursionError):
        raise Wanted(setting.wanted) from None
    if not isinstance(found, list):
        raise Wanted(setting.wanted)
    return found


def _to_texts(setting: Setting, raw: object, typed: bool) -> list[str]:
    if typed and not isinstance(raw, list):
        raise Wanted(setting.wanted)
    values = _to_list(setting, raw)
    for index, value in enumerate(values):
        if not isinstance(value, str):
            raise Wanted(f"a list of texts, but item {index} is {json.dumps(value)}")
    return values


def _to_numbers(setting: Setting, raw: object, typed: bool) -> list[int]:
    if typed and not isinstance(raw, list):
        raise Wanted(setting.wanted)
    text = str(raw)
    values = _to_list(setting, raw if typed or "[" in text else f"[{text}]")
    if not all(isinstance(value, int) and not isinstance(value, bool) and value >= 0 for value in values):
        raise Wanted(setting.wanted)
    return values


def _to_any_list(setting: Setting, raw: object, typed: bool) -> list[object]:
    if typed and not isinstance(raw, list):
        raise Wanted(setting.wanted)
    return _to_list(setting, raw)


_CONVERTERS: dict[str, Callable[[Setting, object, bool], Any]] = {
    "int": _to_int,
    "float": _to_float,
    "bool": _to_bool,
    "str": _to_str,
    "choice": _to_choice,
    "texts": _to_texts,
    "numbers": _to_numbers,
    "list": _to_any_list,
}
