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

# What the command line takes for a switch.
BOOLEANS = {"true": True, "false": False, "1": True, "0": False, "yes": True, "no": False}


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

    @property
    def is_number(self) -> bool:
        return _family(self.kind) in _COUNTED

    @property
    def is_whole(self) -> bool:
        return self.is_number and self.kind is not float

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
            return one_of(list(choices_of(self.kind)))
        nouns = {
            "int": "a whole number",
            "int or choice": "a whole number",
            "float": "a number",
            "bool": "true or false",
            "str": "a text",
            "texts": 'a list of texts (JSON, as ["a", "b"])',
            "numbers": "a list of whole numbers (as 1,2 or JSON)",
            "list": "a list (JSON)",
            "mapping": 'texts by name (as {"a": "b"})',
        }
        if self.limits.file:
            return f"{nouns[family]} or @FILE"
        words = f", or {one_of(list(choices_of(self.kind)))}" if family == "int or choice" else ""
        return f"{nouns[family]}{self._range if family in _COUNTED else ''}{words}"

    @property
    def _range(self) -> str:
        low, high = self.limits.low, self.limits.high
        if (low, high) == (-math.inf, math.inf):
            return ""
        if high == math.inf:
            return f" above {low}" if self.limits.above else f", {low} or more"
        return f" above {low}, up to {high}" if self.limits.above else f" of {low} to {high}"


_COUNTED = ("int", "float", "int or choice")


def settings_of(section: type) -> dict[str, Setting]:
    """The settings of a section, by name."""
    hints = typing.get_type_hints(section)
    found = {}
    for field in dataclasses.fields(section):
        kind, nullable = hints[field.name], False
        if typing.get_origin(kind) in (types.UnionType, typing.Union):
            parts = [part for part in typing.get_args(kind) if part is not type(None)]
            nullable = len(parts) < len(typing.get_args(kind))
            # `int | Literal["auto"]` keeps its two parts; all else has one.
            kind = typing.Union[tuple(parts)]  # noqa: UP007
        found[field.name] = Setting(field.name, kind, nullable, field.default, field.metadata["limits"])
    return found


def nearest(name: str, known: Iterable[str]) -> str:
    """'; did you mean 'x'?', or the names there are."""
    known = list(known)
    near = difflib.get_close_matches(name, known, 1, 0.6) or [
        other for other in known if len(name) > 2 and other.startswith(name)
    ]
    return f"; did you mean '{near[0]}'?" if near else f"; there are {', '.join(known)}"


def choices_of(kind: Any) -> tuple[str, ...]:
    """The words that a kind of setting takes; none where it takes something else."""
    if typing.get_origin(kind) is Literal:
        return typing.get_args(kind)
    return tuple(
        word for part in typing.get_args(kind) if typing.get_origin(part) is Literal for word in choices_of(part)
    )


def _family(kind: Any) -> str:
    if choices_of(kind):
        return "choice" if typing.get_origin(kind) is Literal else "int or choice"
    names = {
        int: "int",
        float: "float",
        bool: "bool",
        str: "str",
        list[str]: "texts",
        list[int]: "numbers",
        list[object]: "list",
        dict[str, str]: "mapping",
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
    if typed or str(raw).lower() not in BOOLEANS:
        raise Wanted(setting.wanted)
    return BOOLEANS[str(raw).lower()]


def _to_str(setting: Setting, raw: object, _typed: bool) -> str:
    if not isinstance(raw, str) or raw == "":
        raise Wanted(setting.wanted if raw != "" else f"{setting.wanted} that is not empty")
    return raw


def _to_choice(setting: Setting, raw: object, _typed: bool) -> str:
    if raw not in choices_of(setting.kind):
        raise Wanted(setting.wanted)
    return str(raw)


def _to_int_or_choice(setting: Setting, raw: object, typed: bool) -> int | str:
    return raw if isinstance(raw, str) and raw in choices_of(setting.kind) else _to_int(setting, raw, typed)


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


def _to_mapping(setting: Setting, raw: object, typed: bool) -> dict[str, str]:
    if not typed:
        try:
            raw = json.loads(str(raw))
        except (ValueError, RecursionError):
            raise Wanted(setting.wanted) from None
    if not isinstance(raw, dict):
        raise Wanted(setting.wanted)
    for name, value in raw.items():
        if not isinstance(value, str):
            raise Wanted(f"a text for each name, but {name} is {json.dumps(value)}; put it in quotes")
    return raw


_CONVERTERS: dict[str, Callable[[Setting, object, bool], Any]] = {
    "int": _to_int,
    "float": _to_float,
    "bool": _to_bool,
    "str": _to_str,
    "choice": _to_choice,
    "int or choice": _to_int_or_choice,
    "texts": _to_texts,
    "numbers": _to_numbers,
    "list": _to_any_list,
    "mapping": _to_mapping,
}
