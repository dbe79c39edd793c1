"""YAML with places: every value knows its line and column. The one door to PyYAML.

Reads YAML 1.2's core scalars (`no` and `12:30` are texts, `1e-5` is a number). Refuses what a job file
does not need and a mistake or an attack may hold: tags, anchors and aliases, keys given twice, several
documents, more than a megabyte, deep nesting.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from parallel.errors import RefusedError

_MAX_BYTES = 2**20
_MAX_DEPTH = 20
_MAX_DIGITS = 30


@dataclass(frozen=True, slots=True)
class Place:
    """Where a value stands, for messages: file:line:column."""

    file: str
    line: int = 0
    column: int = 0

    def __str__(self) -> str:
        return f"{self.file}:{self.line}:{self.column}" if self.line else self.file


@dataclass(frozen=True, slots=True)
class Located:
    """A value and its place; in a mapping the values, and in a list the items, are Located too."""

    value: Any
    place: Place
    # Where the key stands, for a value of a mapping.
    key_place: Place | None = None

    @property
    def key_at(self) -> Place:
        return self.key_place or self.place

    def plain(self) -> Any:
        """The value without places."""
        if isinstance(self.value, dict):
            return {key: item.plain() for key, item in self.value.items()}
        if isinstance(self.value, list):
            return [item.plain() for item in self.value]
        return self.value


class _Loader(yaml.SafeLoader):
    """SafeLoader with YAML 1.2's core schema."""


_Loader.yaml_implicit_resolvers = {}
for _tag, _pattern, _first in (
    ("null", r"~|null|Null|NULL|", "~nN\0"),
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("int", r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", "-+0123456789"),
    (
        "float",
        r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        "-+.0123456789",
    ),
):
    _firsts = [*_first.replace("\0", ""), *([""] if "\0" in _first else [])]
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(f"^(?:{_pattern})$"), _firsts)


def read_yaml(path: Path) -> Located:
    """The one document of a YAML file. RefusedError gives file, line and column."""
    return parse_yaml(_read_text(path), str(path))


def parse_yaml(text: str, name: str) -> Located:
    """The one document of `text`; `name` stands for the file in messages."""
    try:
        _check_events(text, name)
        node = yaml.compose(text, _Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = Place(name, mark.line + 1, mark.column + 1) if mark else Place(name)
        raise RefusedError(f"{where}: is not valid YAML: {error.problem or error.context}") from None
    except yaml.YAMLError as error:
        raise RefusedError(f"{name}: is not valid YAML: {str(error).splitlines()[0]}") from None
    except RecursionError:
        raise RefusedError(f"{name}: is nested too deeply") from None
    if node is None:
        raise RefusedError(f"{name}: is empty; wanted a job (sections model, parallel, generation)")
    return _located(node, name)


def parse_scalar(text: str, name: str) -> Any:
    """The value of `text` as YAML reads it; lists and mappings in flow style too."""
    return parse_yaml(text, name).plain() if text.strip() else ""


def _read_text(path: Path) -> str:
    try:
        if not path.is_file():
            raise RefusedError(
                f"{path}: {'is not a file' if path.exists() else 'does not exist'}; wanted a YAML job file"
            )
        size = path.stat().st_size
        if size > _MAX_BYTES:
            raise RefusedError(f"{path}: has {size} bytes; a job file has at most {_MAX_BYTES}")
        data = path.read_bytes()
        return data.decode("utf-8-sig")
    except OSError as error:
        raise RefusedError(f"{path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise RefusedError(f"{path}:{line}: is not UTF-8 text (byte {error.start})") from None


def _check_events(text: str, name: str) -> None:
    """Refuse by the stream of events, before any tree is built."""
    depth = documents = 0
    for event in _events(text):
        place = Place(name, event.start_mark.line + 1, event.start_mark.column + 1)
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
            raise RefusedError(f"{place}: anchors and aliases (& and *) are not used in job files; write the value out")
        if getattr(event, "tag", None) and not getattr(event, "implicit", True):
            raise RefusedError(f"{place}: the tag {event.tag} is not used in job files; write a plain value")
        if isinstance(event, yaml.CollectionStartEvent):
            if event.tag:
                raise RefusedError(f"{place}: the tag {event.tag} is not used in job files; write a plain value")
            depth += 1
        if isinstance(event, yaml.ScalarEvent) and event.tag:
            raise RefusedError(f"{place}: the tag {event.tag} is not used in job files; write a plain value")
        if isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        if depth > _MAX_DEPTH:
            raise RefusedError(f"{place}: is nested more than {_MAX_DEPTH} deep")
        documents += isinstance(event, yaml.DocumentStartEvent)
        if documents > 1:
            raise RefusedError(f"{place}: a second document begins here; a job file holds one")


def _events(text: str) -> Iterator[Any]:
    yield from yaml.parse(text, _Loader)


def _located(node: Any, name: str) -> Located:
    place = Place(name, node.start_mark.line + 1, node.start_mark.column + 1)
    if isinstance(node, yaml.SequenceNode):
        return Located([_located(item, name) for item in node.value], place)
    if isinstance(node, yaml.MappingNode):
        return Located(_mapping(node, name), place)
    kind = node.tag.rpartition(":")[2]
    if kind == "int" and len(node.value) > _MAX_DIGITS:
        raise RefusedError(f"{place}: a number of {len(node.value)} digits")
    readers: dict[str, Any] = {
        "null": lambda _: None,
        "bool": lambda text: text.lower() == "true",
        "int": lambda text: int(text, 0) if text[:2] in ("0o", "0x") else int(text),
        "float": lambda text: float(text.replace(".inf", "inf").replace(".nan", "nan").replace(".NaN", "nan")),
    }
    return Located(readers.get(kind, str)(node.value), place)


def _mapping(node: Any, name: str) -> dict[str, Located]:
    values: dict[str, Located] = {}
    for key_node, value_node in node.value:
        place = Place(name, key_node.start_mark.line + 1, key_node.start_mark.column + 1)
        if not isinstance(key_node, yaml.ScalarNode):
            raise RefusedError(f"{place}: a key must be a word")
        key = key_node.value
        if key in values:
            raise RefusedError(
                f"{place}: the key '{key}' is given twice (first on line {values[key].key_at.line}); keep one"
            )
        values[key] = replace(_located(value_node, name), key_place=place)
    return values
