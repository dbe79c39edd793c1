"""One section of a job file: its keys and values, checked and converted; every problem is told."""

import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launcher.settings.explaining import ambiguous, explained, in_quotes
from launcher.settings.places import Located, Place, Problems
from launcher.settings.schema import FileName, Setting, Wanted, settings_of
from launcher.settings.vocabulary import advice

PATHS = frozenset({"ckpt_dir", "tokenizer_path", "log_dir", "output"})
# Of these "@FILE" is a path too.
MAY_BE_FILES = frozenset({"prompts", "dialogs", "text"})
# Texts that are for the model, and shell lines: they may have several lines.
_FREE = frozenset({"text", "system"})
_CONTROL = re.compile(r"[\x00-\x1f\x7f\ud800-\udfff]")


@dataclass(frozen=True, slots=True)
class Reading:
    """What a section needs to know of its file."""

    # The folder that relative paths of the file start from.
    folder: Path
    top: Place
    # The settings of each section of this job.
    known: Mapping[str, Mapping[str, Setting]]
    problems: Problems


def settings_of_any(kinds: Sequence[type]) -> dict[str, Setting]:
    """The settings that a section has in one of its kinds."""
    found: dict[str, Setting] = {}
    for kind in kinds:
        for name, setting in settings_of(kind).items():
            found.setdefault(name, setting)
    return found


def read_section(name: str, kinds: Sequence[type], located: Located | None, reading: Reading) -> Any:
    """The section's dataclass, or None where something is wrong with it, which is then among the problems.

    Several `kinds`: which one it is cannot be told, for a mistake that was told already.
    """
    if located is not None and located.wrong:
        return None
    settings, problems = reading.known[name], reading.problems
    before = len(problems)
    fields = _fields(name, located, settings, problems)
    values = {}
    for key, item in fields.items():
        if key in settings:
            values[key] = _converted(f"{name}.{key}", settings[key], item, reading)
        else:
            # Of thousands of wrong keys only the first ones are told, and looked up.
            more = "" if problems.enough else advice(key, name, reading.known)
            problems.add(item.key_at, f"'{shortened(key)}' is not a key of {name}{more}")
    missing = [key for key, setting in settings.items() if setting.required and key not in fields]
    if len(kinds) == 1 and (located is None or isinstance(located.value, dict | None)):
        for key in missing:
            where = located.key_at if located is not None else reading.top
            problems.add(where, f"{name}.{key} is missing; wanted: {settings[key].limits.help}")
    return kinds[0](**values) if len(kinds) == 1 and len(problems) == before else None


def _fields(
    name: str, located: Located | None, settings: Mapping[str, Setting], problems: Problems
) -> dict[str, Located]:
    if located is None or located.value is None:
        return {}
    if not isinstance(located.value, dict):
        problems.add(located.place, f"{name} is {shown(located)}; wanted keys: {', '.join(settings)}")
        return {}
    return located.value


def _converted(key: str, setting: Setting, item: Located, reading: Reading) -> Any:
    problems = reading.problems
    before = len(problems)
    if item.is_wrong() or problems.enough:
        return None
    if reason := ambiguous(setting, item):
        problems.add(item.place, f"{key} {reason}")
        return None
    _check_items(key, setting, item, problems)
    if len(problems) > before:
        return None
    try:
        value = setting.convert(item.plain(), typed=True)
    except Wanted as wanted:
        problems.add(item.place, f"{key} is {shown(item)}; wanted {wanted}{explained(setting, item)}")
        return None
    return _based(setting.name, value, _folder(item, reading.folder))


def _check_items(key: str, setting: Setting, item: Located, problems: Problems) -> None:
    """Tell each wrong item of a list or a mapping at its own place, and letters that no path and no name can have."""
    if isinstance(item.value, list) and setting.kind in (list[str], list[int]):
        for index, part in enumerate(item.value):
            _check_item(f"{key}[{index}]", setting, part, problems)
    elif isinstance(item.value, dict) and setting.kind == dict[str, str]:
        for name, part in item.value.items():
            _check_item(f"{key}.{shortened(name)}", setting, part, problems)
    elif isinstance(item.value, str) and (setting.kind is str or setting.limits.file):
        free = setting.name in _FREE and not item.value.startswith("@")
        if not free and (odd := _CONTROL.search(item.value)):
            problems.add(item.place, f"{key} is {shown(item)}; wanted a text without U+{ord(odd[0]):04X}")


def _check_item(key: str, setting: Setting, part: Located, problems: Problems) -> None:
    if setting.kind == list[int]:
        if reason := ambiguous(setting, part):
            problems.add(part.place, f"{key} {reason}")
        elif not isinstance(part.value, int) or isinstance(part.value, bool) or part.value < 0:
            problems.add(part.place, f"{key} is {shown(part)}; wanted a whole number, 0 or more")
    elif not isinstance(part.value, str):
        problems.add(part.place, f"{key} is {shown(part)}; wanted a text{in_quotes(part)}")


def _folder(item: Located, folder: Path) -> Path:
    """Where a relative path starts from: the file's folder, or the current one for the command line."""
    return folder if item.place.line else Path(os.path.abspath("."))


def _based(name: str, value: Any, folder: Path) -> Any:
    """A path made absolute; anything else as it is."""
    if name in PATHS and isinstance(value, str):
        return str(folder / os.path.expanduser(value))
    if name in MAY_BE_FILES and isinstance(value, list) and len(value) == 1 and isinstance(value[0], FileName):
        return [FileName(f"@{folder / os.path.expanduser(value[0][1:])}")]
    if name in MAY_BE_FILES and isinstance(value, str) and value.startswith("@"):
        return f"@{folder / os.path.expanduser(value[1:])}"
    return value


def shown(item: Located) -> str:
    """A value as it stands in a message."""
    return shortened(json.dumps(item.plain(), default=str, ensure_ascii=False), 80)


def shortened(text: str, most: int = 60) -> str:
    return text if len(text) <= most else f"{text[: most - 3]}..."
