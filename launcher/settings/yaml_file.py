"""YAML with places: every value knows its line and column. The one door to PyYAML.

Reads YAML 1.2's core scalars (`no` and `12:30` are texts, `1e-5` is a number). Refuses what a job file
does not need and a mistake or an attack may hold: tags, anchors and aliases, keys given twice, several
documents, deep nesting, letters that end a line for some readers and not for others.
"""

import re
from collections.abc import Sequence
from typing import Any

import yaml

from launcher.settings.places import Place, Problems
from launcher.settings.yaml_tree import Tree
from parallel.errors import RefusedError

# libyaml, written in C, reads thirty times as fast; not every build of PyYAML has it.
HAS_LIBYAML: bool = yaml.__with_libyaml__
# What is read within half a second on a slow machine, with libyaml and without.
MOST_BYTES, MOST_BYTES_SLOW = 2**20, 2**15
MAX_BYTES = MOST_BYTES if HAS_LIBYAML else MOST_BYTES_SLOW
# The letters that YAML allows, without those that end a line in YAML 1.1 alone, and without a byte order mark.
_ODD_LETTER = re.compile("[^\t\n\r\x20-\x7e\xa0-\u2027\u202a-\ud7ff\ue000-\ufefe\uff00-\ufffd\U00010000-\U0010ffff]")
# The first lines may be such; libyaml takes minutes for a megabyte of them.
_DIRECTIVE = re.compile(r"^%(YAML|TAG)\b", re.MULTILINE)


def parse_yaml(text: str, name: str, problems: Problems, *, numbered: bool = True, native: bool = HAS_LIBYAML) -> Any:
    """The one document of `text`, a `Located`; None where it is empty.

    What is wrong with a single value goes to `problems`; RefusedError where nothing can be made of the text. `name`
    stands for the file in messages, with line and column where they are `numbered`. `native`: read with libyaml.
    """

    def place(index: int) -> Place:
        before = text[:index]
        return Place(name, before.count("\n") + 1, index - before.rfind("\n")) if numbered else Place(name)

    if odd := _ODD_LETTER.search(text):
        escape = f"\\x{ord(odd[0]):02x}" if ord(odd[0]) < 256 else f"\\u{ord(odd[0]):04x}"
        raise RefusedError(
            f"{place(odd.start())}: holds the character U+{ord(odd[0]):04X}, which cannot be seen; take it out, or "
            f"write it as {escape} in a text in double quotes"
        )
    if directive := _DIRECTIVE.search(text):
        raise RefusedError(
            f"{place(directive.start())}: directives (%YAML, %TAG) are not used in job files; take it out"
        )
    tree = Tree(name, problems, numbered)
    try:
        for event in yaml.parse(text, Loader=yaml.CLoader if native else yaml.Loader):
            tree.take(event)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        # libyaml puts the end of a text on a line behind it.
        where = place(min(mark.index, len(text))) if mark else Place(name)
        raise RefusedError(f"{where}: is not valid YAML: {_reason(error, text)}") from None
    except yaml.YAMLError as error:
        raise RefusedError(f"{name}: is not valid YAML: {str(error).splitlines()[0]}") from None
    return tree.root


def _reason(error: yaml.MarkedYAMLError, text: str) -> str:
    """What PyYAML says, and what to do about the usual mistakes."""
    problem, mark = error.problem or error.context or "", error.problem_mark
    begun = error.context_mark
    letter = text[mark.index : mark.index + 1] if mark else ""
    if letter == "\t":
        return "a tab stands here; indent with spaces"
    if "cannot start any token" in problem and letter.isprintable() and letter:
        return f"a text cannot begin with {letter} without quotes: write '{letter}...'"
    if "mapping values are not allowed" in problem:
        return "a second ': ' on the line; put a text that holds it in quotes, and indent the keys of a section alike"
    if error.context and begun and mark and begun.line != mark.line:
        return f"{problem} {error.context}, which begins on line {begun.line + 1}"
    return problem


class _Dumper(yaml.SafeDumper):
    """Block style, lists indented below their key, every value written out."""

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:  # noqa: ARG002
        super().increase_indent(flow, False)

    def ignore_aliases(self, data: object) -> bool:  # noqa: ARG002
        return True


# What a reader of YAML 1.1 or 1.2, or one in between such as kubectl's, takes for a boolean, a number or a date.
_NO_TEXT_FOR_SOME = re.compile(r"[yYnN]|(?i:yes|no|on|off|true|false|null)|~|[-+.]*[0-9][-+0-9a-fA-F_.:oxTtZ ]*")


def _text_node(dumper: _Dumper, text: str) -> yaml.ScalarNode:
    style = None
    if _ODD_LETTER.search(text) or "\t" in text or "\r" in text:
        style = '"'
    elif "\n" in text and not text.isspace():
        style = "|"
    elif _NO_TEXT_FOR_SOME.fullmatch(text):
        style = "'"
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _text_node)


def dump_yaml(documents: Sequence[object]) -> str:
    """The documents as YAML that is read back the same by readers of YAML 1.1 and 1.2; `---` between them.

    Made of mappings, lists, texts, numbers, booleans and None. Keys stay in their order.
    """
    text: str = yaml.dump_all(
        documents,
        Dumper=_Dumper,
        default_flow_style=False,
        explicit_start=len(documents) > 1,
        allow_unicode=True,
        sort_keys=False,
        width=2**31,
    )
    return text
