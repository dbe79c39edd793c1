"""Why a value does not fit although it looks as if it did: what YAML makes of it, and how to write what is meant."""

import re
from typing import Any

from launcher.settings.places import Located
from launcher.settings.schema import Setting

_YES_NO = {"yes": "true", "on": "true", "y": "true", "no": "false", "off": "false", "n": "false"}
# YAML 1.1 takes them for numbers to the base 60: 12:30:45 is 45045.
_SIXTIES = re.compile(r"[-+]?[0-9]{1,4}(:[0-5]?[0-9])+")
_LEADING_ZERO = re.compile(r"[-+]?0[0-9]+")
_GROUPED = re.compile(r"[-+]?[0-9]{1,3}([_, ][0-9]{3})+")
_MOST = 10**15


def explained(setting: Setting, item: Located) -> str:
    """What to add, after a semicolon, to 'wanted ...'; nothing where the mistake is plain."""
    value = item.value
    if value is None and item.written == "":
        return "; nothing stands behind the colon: leave the key out for its default"
    if setting.kind is bool:
        return _of_switch(value)
    if setting.is_number:
        return _of_number(setting, item)
    if setting.kind is str:
        return in_quotes(item)
    if setting.kind in (list[str], list[int], list[object]) and isinstance(value, str | int | float):
        return f"; write it as a list: [{value if item.written is None else item.written}]"[:80]
    return ""


def in_quotes(item: Located) -> str:
    """How to write a number or a boolean as the text that it is meant to be."""
    if isinstance(item.value, int | float):  # True is an int too
        return f"; put it in quotes: '{item.value if item.written is None else item.written}'"
    return ""


def _of_switch(value: Any) -> str:
    meant = _YES_NO.get(value.lower()) if isinstance(value, str) else None
    if meant is not None:
        return f"; {value} is a text in YAML 1.2: write {meant}"
    if isinstance(value, str) and value.lower() in ("true", "false"):
        return f"; without quotes: {value.lower()}"
    return f"; write {str(value == 1).lower()}" if value in (0, 1) and not isinstance(value, bool) else ""


def _of_number(setting: Setting, item: Located) -> str:
    value = item.value
    if isinstance(value, float) and value.is_integer() and abs(value) < _MOST and setting.is_whole:
        return f"; {item.written or value} is a number with a point in YAML: write {int(value)}"
    if not isinstance(value, str) or len(value) > 40:
        return ""
    if _SIXTIES.fullmatch(value):
        return f"; {value} is a text in YAML 1.2 and {_sixties(value)} in YAML 1.1: write the number"
    if item.written is not None and _GROUPED.fullmatch(value):
        return f"; write {re.sub('[_, ]', '', value)}"
    if item.written is None and re.fullmatch(r"[-+]?[0-9.]+([eE][-+]?[0-9]+)?", value):
        return f"; without quotes: {value}"
    return ""


def _sixties(text: str) -> int:
    total = 0
    for part in text.lstrip("+-").split(":"):
        total = total * 60 + int(part)
    return -total if text.startswith("-") else total


def ambiguous(setting: Setting, item: Located) -> str | None:
    """Why a number must be written in another way, although it can be read: 012 is 10 for some, 12 for others."""
    counted = setting.is_number or setting.kind == list[int]
    if item.written is None or not counted or not _LEADING_ZERO.fullmatch(item.written):
        return None
    octal = f"{int(item.written, 8)} (octal)" if re.fullmatch(r"[-+]?[0-7]+", item.written) else "a text"
    return f"is {item.written}, which is {item.value} in YAML 1.2 and {octal} in YAML 1.1; write {item.value}"
