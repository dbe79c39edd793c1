"""YAML with places: YAML 1.2's scalars, and what is refused."""

import math
import re

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from launcher.settings.yaml_file import parse_yaml
from parallel import RefusedError


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
    found = parse_yaml(f"key: {text}", "t").plain()["key"]
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
        ("a:\n\t- 1", "t:2:1: is not valid YAML"),
        ("[" * 3000, "t:1:21: is nested more than 20 deep"),
        ("", "t: is empty"),
        ("a: " + "9" * 5000, "t:1:4: a number of 5000 digits"),
        ("? [1, 2]\n: 3", "t:1:3: a key must be a word"),
        ("a: \x00", "t: is not valid YAML"),
    ],
)
def test_what_no_job_file_needs_is_refused_with_its_place(text: str, message: str) -> None:
    with pytest.raises(RefusedError) as refused:
        parse_yaml(text, "t")
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)


def needs_no_quotes_in_yaml_1_1_alone(text: str) -> bool:
    """True for a number of YAML 1.2 that is a text in 1.1, which is what PyYAML writes."""
    number = re.fullmatch(r"[-+]?[0-9.]+([eE][-+]?[0-9]+)?|0o[0-7]+", text)
    return number is not None and isinstance(yaml.safe_load(text), str)


TEXTS = st.text().filter(lambda text: not needs_no_quotes_in_yaml_1_1_alone(text))


@given(st.recursive(st.none() | st.booleans() | st.integers(-(10**9), 10**9) | TEXTS, st.lists, max_leaves=8))
def test_what_yaml_writes_is_read_back(value: object) -> None:
    text = yaml.safe_dump({"key": value}, allow_unicode=True)
    if "\u0085" in text or "!!" in text:
        return
    assert parse_yaml(text, "t").plain() == {"key": value}


@given(st.text())
def test_any_text_is_read_or_refused(text: str) -> None:
    refusal = "t:"
    try:
        parse_yaml(text, "t")
    except RefusedError as refused:
        refusal = str(refused)
    assert refusal.startswith("t:")
