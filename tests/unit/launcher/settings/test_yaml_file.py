"""YAML with places: YAML 1.2's scalars, and what is refused."""

import math

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from launcher.settings.places import Located, Problems
from launcher.settings.yaml_file import HAS_LIBYAML, dump_yaml, parse_yaml
from parallel import RefusedError

BUILDS = [False, True] if HAS_LIBYAML else [False]


def parse(text: str, native: bool = HAS_LIBYAML) -> Located:
    """The document of `text`; RefusedError for whatever is wrong with it."""
    problems = Problems()
    root = parse_yaml(text, "t", problems, native=native)
    problems.refuse()
    assert isinstance(root, Located)
    return root


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("no", "no"),
        ("on", "on"),
        ("12:30:00", "12:30:00"),
        ("1:4", "1:4"),
        ("1e-5", 1e-5),
        ("0777", 777),
        ("0o17", 15),
        ("0x1F", 31),
        ("1_000", "1_000"),
        ("2026-11-20", "2026-11-20"),
        ("true", True),
        ("~", None),
        ("null", None),
        ("''", ""),
        ("-3", -3),
        (".5", 0.5),
        ("3.", 3.0),
        (".inf", math.inf),
        ("=", "="),
    ],
)
def test_plain_scalars_are_read_as_yaml_1_2(text: str, value: object) -> None:
    found = parse(f"key: {text}").plain()["key"]
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\na: 2", "t:2:1: the key 'a' is given twice (first on line 1); keep one"),
        ("a: !!python/object:os.system {}", "t:1:4: the tag tag:yaml.org,2002:python/object:os.system is not used"),
        ("a: &x [1]\nb: *x", "t:1:4: anchors and aliases (& and *) are not used in job files"),
        ("a: 1\n---\nb: 2", "t:2:1: a second document begins here"),
        ("a: [1, 2", "t:1:9: is not valid YAML"),
        (
            "a: [1,\n  2",
            "t:2:4: is not valid YAML: did not find expected ',' or ']' while parsing a flow sequence, which begins on "
            "line 1",
        ),
        ("a:\n\t- 1", "t:2:1: is not valid YAML: a tab stands here; indent with spaces"),
        ("a: @b", "t:1:4: is not valid YAML: a text cannot begin with @ without quotes: write '@...'"),
        ("a: b: c", "t:1:5: is not valid YAML: a second ': ' on the line; put a text that holds it in quotes"),
        ("a: %b", "t:1:4: is not valid YAML: a text cannot begin with % without quotes"),
        ("%YAML 1.1\n---\na: 1", "t:1:1: directives (%YAML, %TAG) are not used in job files"),
        ("[" * 3000, "t:1:21: is nested more than 20 deep"),
        ("a: " + "9" * 5000, "t:1:4: a number of 5000 digits"),
        ("? [1, 2]\n: 3", "t:1:3: a key must be a word"),
        ("a: \x00", "t:1:4: holds the character U+0000, which cannot be seen; take it out, or write it as \\x00 in"),
        (
            "a:\r\n b\u2028c",
            "t:2:3: holds the character U+2028, which cannot be seen; take it out, or write it as \\u2028",
        ),
        ("a: [" + "1, " * 60000 + "]", "t:1:150002: more than 50000 values; put prompts or dialogs in a file"),
    ],
)
def test_what_no_job_file_needs_is_refused_with_its_place(text: str, message: str) -> None:
    with pytest.raises(RefusedError) as refused:
        parse(text)
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)


def test_an_empty_text_has_no_document() -> None:
    assert parse_yaml("# nothing\n", "t", Problems()) is None


def test_what_is_wrong_with_single_values_is_told_of_all_of_them_at_once() -> None:
    with pytest.raises(RefusedError) as refused:
        parse("a: !x 1\nb: [&c 2, &d 3]\na: 4\ne: {? [f] : *g}\nh: " + "7" * 31)
    assert str(refused.value).splitlines() == [
        "t:1:4: the tag !x is not used in job files; write a plain value",
        "t:2:5: anchors and aliases (& and *) are not used in job files; write the value out, or a text in quotes",
        "t:3:1: the key 'a' is given twice (first on line 1); keep one",
        "t:4:7: a key must be a word",
        "t:5:4: a number of 31 digits; wanted at most 30",
    ]


TEXTS = st.text(st.characters(exclude_categories=["Cs"]))
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**9), 10**9) | st.floats(allow_nan=False) | TEXTS,
    lambda inner: st.lists(inner) | st.dictionaries(TEXTS, inner),
    max_leaves=8,
)


@given(st.dictionaries(TEXTS, VALUES))
def test_what_is_written_is_read_back_and_by_readers_of_yaml_1_1_too(value: object) -> None:
    text = dump_yaml([value])
    assert parse(text).plain() == value
    assert yaml.safe_load(text) == value


@pytest.mark.parametrize(
    "text",
    ["no", "Off", "y", "N", "12:30:00", "0777", "1e5", "0o17", "1_000", "0x1F", "-.5", "2026-11-20", "~", "null", "="],
)
def test_a_text_that_some_reader_takes_for_something_else_is_quoted(text: str) -> None:
    assert dump_yaml([{"key": text}]) == f"key: '{text}'\n"


def test_yaml_is_written_to_be_read() -> None:
    first = {
        "a": {"command": ["sh", "-c", "set -e\nrun\n"], "none": None, "on": True},
        "empty": [{}, []],
        "long": "x y " * 60,
    }
    shared = ["once"]
    assert dump_yaml([first, {"x": shared, "z": shared}]) == (
        "---\na:\n  command:\n    - sh\n    - -c\n    - |\n      set -e\n      run\n  none: null\n  'on': true\n"
        f"empty:\n  - {{}}\n  - []\nlong: '{'x y ' * 60}'\n---\nx:\n  - once\nz:\n  - once\n"
    )


# What YAML gives a meaning to, more often than chance would.
SYNTAX = st.text(st.sampled_from(list("ab1 \n\t:#-?|>'\"%@&*!{}[],\\~=<.\r\x85")) | st.characters())


REFUSED = object()


def outcome(text: str, native: bool) -> object:
    problems = Problems()
    try:
        root = parse_yaml(text, "t", problems, native=native)
        problems.refuse()
    except RefusedError as refused:
        assert str(refused).startswith("t:")  # noqa: PT017
        return REFUSED
    return root and root.plain()


@given(SYNTAX)
def test_any_text_is_read_or_refused_and_read_the_same_with_and_without_libyaml(text: str) -> None:
    # libyaml takes a tab behind a value, where PyYAML's own reader does not.
    read = {repr(found) for found in (outcome(text, native) for native in BUILDS) if found != REFUSED}
    assert len(read) <= 1
