"""Job files: the settings of a run in YAML, with the same names as the flags, in sections.

    name: demo
    command: complete
    model: {ckpt_dir: demo}
    parallel: {nproc_per_node: 2}
    generation: {prompts: [Once upon a time]}

Paths in a file are relative to the file's folder; those in overrides on the command line to the current one.
"""

import difflib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from launcher.settings.options import GENERATION_SECTIONS, RunOptions, sections_of
from launcher.settings.schema import Setting, Wanted, nearest, settings_of
from launcher.settings.yaml_file import Located, Place, parse_scalar, read_yaml
from parallel.errors import RefusedError, one_of

_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")
_PATHS = frozenset({"ckpt_dir", "tokenizer_path", "log_dir", "output"})
# Of these "@FILE" is a path too.
_MAY_BE_FILES = frozenset({"prompts", "dialogs", "text"})
_TOP_KEYS = ("name", "command", *sections_of("complete"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    name: str
    command: str
    options: RunOptions


def read_job(path: Path, overrides: Sequence[str] = (), flags: Mapping[str, str] | None = None) -> Job:
    """Read a job file and lay overrides (`section.key=value`) over it.

    RefusedError lists every error at once, a line each: file, line, column, key, what was found, what is wanted.
    """
    document = read_yaml(path)
    if not isinstance(document.value, dict):
        raise RefusedError(f"{document.place}: holds {document.plain()!r}; wanted sections: {', '.join(_TOP_KEYS)}")
    given = _based(document, path.resolve().parent)
    texts = [*overrides, *(f"{key}={value}" for key, value in (flags or {}).items())]
    # Which keys there are depends on the command.
    texts.sort(key=lambda text: not text.startswith("command="))
    errors: list[str] = []
    known = sections_of("complete")
    for text in texts:
        if not text.startswith("command="):
            known = sections_of(_known_command(given))
        _override(given, text, known)
    name = _top(given, "name", path.stem, errors)
    command = _top(given, "command", "complete", errors)
    if errors and command not in GENERATION_SECTIONS:
        raise RefusedError("\n".join(errors))  # which keys there are is not known
    known = sections_of(_known_command(given))
    sections = {key: _section(key, kind, given.get(key), document.place, errors) for key, kind in known.items()}
    errors += [
        f"{located.key_at}: '{key}' is not a section of a job{nearest(key, _TOP_KEYS)}"
        for key, located in given.items()
        if key not in _TOP_KEYS
    ]
    if errors:
        raise RefusedError("\n".join(errors))
    return Job(name=name, command=command, options=RunOptions(command=command, **sections))


def _based(document: Located, folder: Path) -> dict[str, Located]:
    """The document with its relative paths made absolute from `folder`."""
    given: dict[str, Located] = dict(document.value)
    for section, located in given.items():
        if isinstance(located.value, dict):
            fields = {key: _based_value(key, value, folder) for key, value in located.value.items()}
            given[section] = replace(located, value=fields)
    return given


def _based_value(key: str, located: Located, folder: Path) -> Located:
    value = located.value
    if isinstance(value, str) and value and key in _PATHS:
        return replace(located, value=str(folder / value))
    if isinstance(value, str) and key in _MAY_BE_FILES and value.startswith("@"):
        return replace(located, value=f"@{folder / value[1:]}")
    return located


def _known_command(given: Mapping[str, Located]) -> str:
    """The job's command; complete where it says none, or none that there is."""
    value = given["command"].value if "command" in given else None
    return value if isinstance(value, str) and value in GENERATION_SECTIONS else "complete"


def _override(given: dict[str, Located], text: str, sections: Mapping[str, type]) -> None:
    key, equals, value = text.partition("=")
    place = Place("the command line")
    if not equals:
        raise RefusedError(f"'{text}' is not an override; wanted section.key=value, as generation.temperature=0")
    section, dot, field = key.partition(".")
    known = sections.get(section)
    if known is None and not (section in _TOP_KEYS and not dot):
        raise RefusedError(f"'{text}': '{section}' is not a section of a job{nearest(section, _TOP_KEYS)}")
    if known is None:
        given[section] = Located(value, place)
        return
    if field not in settings_of(known):
        raise RefusedError(f"'{text}': '{field}' is not a key of {section}{nearest(field, settings_of(known))}")
    kind = settings_of(known)[field].kind
    parsed = value if kind is str or value.startswith("@") else parse_scalar(value, f"'{text}'")
    old = given.get(section)
    fields = dict(old.value) if old is not None and isinstance(old.value, dict) else {}
    fields[field] = _located(parsed, place)
    given[section] = Located(fields, old.place if old is not None else place)


def _located(value: Any, place: Place) -> Located:
    return (
        Located([_located(item, place) for item in value], place) if isinstance(value, list) else Located(value, place)
    )


def _top(given: Mapping[str, Located], key: str, default: str, errors: list[str]) -> str:
    located = given.get(key)
    if located is None:
        return default
    value = located.value
    if key == "command" and value not in GENERATION_SECTIONS:
        wanted = one_of(list(GENERATION_SECTIONS))
        errors.append(f"{located.place}: command is {_shown(value)}; wanted {wanted}{_near(value)}")
    if key == "name" and not (isinstance(value, str) and _NAME.fullmatch(value)):
        errors.append(f"{located.place}: name is {_shown(value)}; wanted 1 to 64 letters, digits, '.', '_' and '-'")
    return str(value)


def _near(command: object) -> str:
    near = difflib.get_close_matches(str(command), GENERATION_SECTIONS, 1)
    return f"; did you mean '{near[0]}'?" if near else ""


def _section(name: str, kind: type, located: Located | None, top: Place, errors: list[str]) -> Any:
    """The section's dataclass; errors are appended, and then None is returned."""
    settings = settings_of(kind)
    before = len(errors)
    fields: dict[str, Located] = {}
    if located is not None and located.value is not None:
        if isinstance(located.value, dict):
            fields = located.value
        else:
            errors.append(f"{located.place}: {name} is {_shown(located.plain())}; wanted keys: {', '.join(settings)}")
    values: dict[str, Any] = {}
    for key, item in fields.items():
        if key not in settings:
            errors.append(f"{item.key_at}: '{key}' is not a key of {name}{nearest(key, settings)}")
        else:
            _convert(f"{name}.{key}", settings[key], item, values, errors)
    for key, setting in settings.items():
        if setting.required and key not in fields and len(errors) == before:
            errors.append(
                f"{(located or Located(None, top)).place}: {name}.{key} is missing; wanted: {setting.limits.help}"
            )
    return kind(**values) if len(errors) == before else None


def _convert(key: str, setting: Setting, item: Located, values: dict[str, Any], errors: list[str]) -> None:
    try:
        values[setting.name] = setting.convert(item.plain(), typed=True)
    except Wanted as wanted:
        errors.append(f"{item.place}: {key} is {_shown(item.plain())}; wanted {wanted}")


def _shown(value: object) -> str:
    text = json.dumps(value, default=str)
    return text if len(text) <= 80 else f"{text[:77]}..."
