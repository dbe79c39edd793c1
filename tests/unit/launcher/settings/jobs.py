"""Job files made up by hypothesis: any value that each setting takes, in any section."""

import math
from typing import Any

from hypothesis import strategies as st

from launcher.settings.cluster_options import CLUSTER_SECTIONS
from launcher.settings.options import GENERATION_SECTIONS, sections_of
from launcher.settings.schema import Setting, choices_of, settings_of

# What a YAML file can hold, and an environment variable too.
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
SOME_TEXT = TEXTS.filter(bool)
NAMES = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=40)
FILES = st.builds(lambda text: f"@/{text}", NAMES)
ONE_LINE = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0\n"), max_size=40)
DIALOGS = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**20), 10**20) | st.floats(allow_nan=False) | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=6,
)


def values(setting: Setting) -> st.SearchStrategy[Any]:
    """What a job file may give a setting."""
    low, high = setting.limits.low, setting.limits.high
    words = choices_of(setting.kind)
    if words and not setting.is_number:
        found: st.SearchStrategy[Any] = st.sampled_from(words)
    elif setting.is_whole:
        found = st.sampled_from(words) if words else st.nothing()
        found |= st.integers(None if low == -math.inf else int(low), 10**20 if high == math.inf else int(high))
    elif setting.kind is float:
        found = st.floats(low, min(high, 1e300), exclude_min=setting.limits.above, allow_nan=False)
    else:
        found = {
            bool: st.booleans(),
            str: NAMES | FILES | (SOME_TEXT if setting.name in ("text", "system") else NAMES),
            list[str]: st.lists(TEXTS, max_size=4),
            list[int]: st.lists(st.integers(0, 10**9), max_size=4),
            list[object]: st.lists(DIALOGS, max_size=3),
            dict[str, str]: st.dictionaries(SOME_TEXT, TEXTS, max_size=3),
        }[setting.kind]
    if setting.limits.file:
        found = found | FILES
    return found | st.none() if setting.nullable else found


def sections(kind: type) -> st.SearchStrategy[dict[str, Any]]:
    settings = settings_of(kind)
    required = {name: values(setting) for name, setting in settings.items() if setting.required}
    optional = {name: values(setting) for name, setting in settings.items() if not setting.required}
    return st.fixed_dictionaries(required, optional=optional)


def jobs_of(command: str) -> st.SearchStrategy[dict[str, Any]]:
    required = {name: sections(kind) for name, kind in sections_of(command).items()}
    optional = {
        "name": st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,63}", fullmatch=True),
        "workdir": NAMES,
        "env": st.dictionaries(st.from_regex(r"[A-Za-z_][A-Za-z0-9_]{0,9}", fullmatch=True), ONE_LINE, max_size=3),
    }
    return st.fixed_dictionaries({"command": st.just(command), **required}, optional=optional)


def with_cluster(job: dict[str, Any]) -> st.SearchStrategy[dict[str, Any]]:
    clusters = [sections(kind).map(lambda section: {"cluster": section}) for kind in CLUSTER_SECTIONS.values()]
    return st.one_of(st.just({}), *clusters).map(lambda cluster: {**job, **cluster})


JOBS = st.sampled_from(list(GENERATION_SECTIONS)).flatmap(jobs_of).flatmap(with_cluster)
