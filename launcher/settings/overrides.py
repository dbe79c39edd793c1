"""Overrides on the command line: `section.key=value`, laid over what a job file says."""

from collections.abc import Callable, Iterable, Mapping, Sequence

from launcher.settings.options import GENERATION_SECTIONS, sections_of
from launcher.settings.places import COMMAND_LINE, Located, Problems
from launcher.settings.schema import Setting, settings_of
from launcher.settings.section import shortened
from launcher.settings.vocabulary import TOP_KEYS, advice, home_of
from launcher.settings.yaml_file import parse_yaml
from parallel.errors import RefusedError

Known = Mapping[str, Mapping[str, Setting]]
# Which other keys there are depends on these.
_FIRST = ("command", "cluster.kind")


def texts_of(words: Sequence[str], flags: Mapping[str, str]) -> list[str]:
    """`--section.key value` and `--section.key=value` as `section.key=value`, beside the words that are so already."""
    for key, value in flags.items():
        # What fire gives a flag that stands without a value.
        if value == "True" and _is_no_switch(key):
            raise RefusedError(f"--{key} has no value; wanted --{key} VALUE, or {key}=VALUE")
    return [*words, *(f"{key}={value}" for key, value in flags.items())]


def _is_no_switch(key: str) -> bool:
    section, _, field = key.partition(".")
    kinds = [kind for command in GENERATION_SECTIONS for name, kind in sections_of(command).items() if name == section]
    found = [settings_of(kind)[field] for kind in kinds if field in settings_of(kind)]
    return bool(found) and not any(setting.is_flag for setting in found)


def lay_over(
    given: dict[str, Located],
    texts: Iterable[str],
    known: Callable[[Mapping[str, Located]], Known],
    problems: Problems,
) -> None:
    """Lay each `section.key=value` over `given`, in place; what is wrong goes to `problems`.

    `known` tells the settings of each section, once command and kind of cluster are there.
    """
    seen: set[str] = set()
    # A stable sort: nothing else changes its place.
    for text in sorted(texts, key=lambda text: text.partition("=")[0].lstrip("-") not in _FIRST):
        try:
            name = _lay(given, text.removeprefix("--"), known)
        except RefusedError as error:
            problems.add(COMMAND_LINE, str(error))
            continue
        if name in seen:
            problems.add(COMMAND_LINE, f"'{name}' is given twice; give it once")
        seen.add(name)


def _lay(given: dict[str, Located], text: str, known: Callable[[Mapping[str, Located]], Known]) -> str:
    """Lay one override over `given`; the name of what was set. RefusedError says what is wrong with it."""
    key, equals, value = text.partition("=")
    section, dot, field = key.partition(".")
    if any("\ud800" <= letter <= "\udfff" for letter in text):
        raise RefusedError(f"{text!a} is not UTF-8 text")
    if not equals:
        raise RefusedError(
            f"'{shortened(text)}' is not an override; wanted section.key=value, as generation.temperature=0"
        )
    if not dot and section in ("name", "command", "workdir"):
        given[section] = Located(value, COMMAND_LINE)
        return section
    if section == "env" and dot:
        _put(given, section, field, Located(value, COMMAND_LINE))
        return key
    sections = known(given)
    if section not in sections or not dot:
        raise RefusedError(_no_section(text, section, sections))
    field = field.replace("-", "_")
    setting = sections[section].get(field)
    if setting is None:
        raise RefusedError(
            f"'{shortened(text)}': '{field}' is not a key of {section}{advice(field, section, sections)}"
        )
    _put(given, section, field, _value(key, setting, value))
    return f"{section}.{field}"


def _no_section(text: str, section: str, sections: Known) -> str:
    value = text.partition("=")[2]
    if section in TOP_KEYS:
        keys = sections.get(section, {})
        example = f"{section}.{next(iter(keys), 'NAME')}"
        return f"'{shortened(text)}': {section} is a section; set a key of it, as {example}=..."
    home = None if "." in text.partition("=")[0] else home_of(section, sections)
    why = f"; did you mean {home}={shortened(value)}?" if home else advice(section, None, sections)
    return f"'{shortened(text)}': '{shortened(section)}' is not a section of a job{why}"


def _put(given: dict[str, Located], section: str, field: str, item: Located) -> None:
    old = given.get(section)
    fields = dict(old.value) if old is not None and isinstance(old.value, dict) else {}
    fields[field] = item
    given[section] = Located(fields, *((old.place, old.key_place) if old is not None else (COMMAND_LINE,)))


def _value(key: str, setting: Setting, text: str) -> Located:
    """A value as YAML reads it; a text stays one, but for null where the key may be left out."""
    is_file = setting.limits.file and text.startswith("@")
    is_text = setting.kind is str and not (setting.nullable and text == "null")
    if is_file or is_text or not text.strip():
        return Located(text, COMMAND_LINE)
    found = Problems()
    # 1,2 as for a flag.
    written = f"[{text}]" if setting.kind == list[int] and "[" not in text else text
    try:
        parsed = parse_yaml(written, COMMAND_LINE.file, found, numbered=False)
        found.refuse()
    except RefusedError as error:
        reason = str(error).splitlines()[0].removeprefix(f"{COMMAND_LINE}: ")
        raise RefusedError(f"{key} is '{shortened(text)}': {reason}") from None
    return parsed if isinstance(parsed, Located) else Located(text, COMMAND_LINE)
