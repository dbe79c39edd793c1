"""The tree of values that a stream of YAML events describes, each with its place. No alias is ever followed."""

import re
from dataclasses import dataclass, field, replace
from typing import Any

from launcher.settings.places import Located, Place, Problems
from parallel.errors import RefusedError

_MAX_DEPTH = 20
MAX_VALUES = 50_000
_MAX_DIGITS = 30
_NULL = frozenset({"", "~", "null", "Null", "NULL"})
_BOOLEANS = {"true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False}
_WHOLE = re.compile(r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+")
_NUMBER = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")


@dataclass(slots=True)
class _Key:
    """A key that waits for its value. `name`: None where the value is not to be kept."""

    name: str | None
    place: Place


@dataclass(slots=True)
class _Open:
    """A mapping or a list that has not ended."""

    value: Any
    place: Place
    wrong: bool
    key: _Key | None = field(default=None)


class Tree:
    """Takes PyYAML's events one after the other; `root` is the document, None where there was none.

    What is wrong with single values goes to `problems`; RefusedError where it is pointless to read on.
    """

    def __init__(self, name: str, problems: Problems, numbered: bool) -> None:
        self.root: Located | None = None
        self._name, self._problems, self._numbered = name, problems, numbered
        self._open: list[_Open] = []
        self._values = self._documents = 0
        self._anchors_told = False

    def place(self, mark: Any) -> Place:
        return Place(self._name, mark.line + 1, mark.column + 1) if self._numbered else Place(self._name)

    def take(self, event: Any) -> None:
        """Take the next event. PyYAML's classes are told apart by name: they have no common door but yaml_file.py."""
        kind = type(event).__name__
        if kind == "DocumentStartEvent":
            self._begin_document(event)
        elif kind in ("MappingStartEvent", "SequenceStartEvent"):
            self._begin({} if kind == "MappingStartEvent" else [], event)
        elif kind in ("MappingEndEvent", "SequenceEndEvent"):
            ended = self._open.pop()
            self._give(Located(ended.value, ended.place, wrong=ended.wrong))
        elif kind == "ScalarEvent":
            self._give(self._scalar(event))
        elif kind == "AliasEvent":
            self._give(Located(None, self.place(event.start_mark), wrong=self._has_anchor(event)))

    def _begin_document(self, event: Any) -> None:
        self._documents += 1
        if self._documents > 1:
            where = self.place(event.start_mark)
            raise RefusedError(f"{where}: a second document begins here; a job file holds one")

    def _begin(self, value: Any, event: Any) -> None:
        wrong = self._has_anchor(event) or self._has_tag(event)
        self._open.append(_Open(value, self.place(event.start_mark), wrong))
        if len(self._open) > _MAX_DEPTH:
            raise RefusedError(f"{self._open[-1].place}: is nested more than {_MAX_DEPTH} deep")

    def _give(self, node: Located) -> None:
        """Put a value, or a key, where it belongs."""
        self._values += 1
        if self._values > MAX_VALUES:
            raise RefusedError(
                f"{node.place}: more than {MAX_VALUES} values; put prompts or dialogs in a file of their own, and "
                "name it: prompts: '@FILE.txt'"
            )
        if not self._open:
            self.root = node
            return
        top = self._open[-1]
        if isinstance(top.value, list):
            top.value.append(node)
        elif top.key is None:
            top.key = self._key(node, top.value)
        else:
            if top.key.name is not None:
                top.value[top.key.name] = replace(node, key_place=top.key.place)
            top.key = None

    def _key(self, node: Located, mapping: dict[str, Located]) -> _Key:
        if node.is_wrong():
            return _Key(None, node.place)
        if isinstance(node.value, dict | list):
            self._problems.add(node.place, "a key must be a word")
            return _Key(None, node.place)
        # `5: x` and `true: x` have the keys "5" and "true".
        name = node.value if node.written is None else node.written
        if name in mapping:
            first = mapping[name].key_at
            self._problems.add(
                node.place, f"the key '{_short(name)}' is given twice (first on line {first.line}); keep one"
            )
            return _Key(None, node.place)
        return _Key(name, node.place)

    def _scalar(self, event: Any) -> Located:
        place = self.place(event.start_mark)
        if self._has_anchor(event) or self._has_tag(event):
            return Located(event.value, place, wrong=True)
        if event.style:  # in quotes, or a block
            return Located(event.value, place)
        if _WHOLE.fullmatch(event.value) and len(event.value) > _MAX_DIGITS:
            self._problems.add(place, f"a number of {len(event.value)} digits; wanted at most {_MAX_DIGITS}")
            return Located(event.value, place, wrong=True)
        return Located(plain_value(event.value), place, written=event.value)

    def _has_tag(self, event: Any) -> bool:
        if event.tag is not None:
            where = self.place(event.start_mark)
            self._problems.add(where, f"the tag {_short(event.tag)} is not used in job files; write a plain value")
        return event.tag is not None

    def _has_anchor(self, event: Any) -> bool:
        """Of a thousand anchors the first one is told."""
        if event.anchor is not None and not self._anchors_told:
            where = self.place(event.start_mark)
            self._problems.add(
                where,
                "anchors and aliases (& and *) are not used in job files; write the value out, or a text in quotes",
            )
            self._anchors_told = True
        return event.anchor is not None


def plain_value(text: str) -> Any:
    """What a scalar without quotes is in YAML 1.2's core schema."""
    if text in _NULL:
        return None
    if text in _BOOLEANS:
        return _BOOLEANS[text]
    if _WHOLE.fullmatch(text):
        return int(text, 0) if text[:2] in ("0o", "0x") else int(text)
    if _NUMBER.fullmatch(text):
        return float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))
    return text


def _short(text: str) -> str:
    return text if len(text) <= 60 else f"{text[:57]}..."
