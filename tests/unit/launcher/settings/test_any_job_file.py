"""Any file at all: read as a job, or refused with a place and a reason, and at once (FAULTS F91 to F99)."""

import re
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from launcher.settings.job import read_job
from launcher.settings.yaml_file import dump_yaml
from parallel import RefusedError
from tests.unit.launcher.settings.jobs import JOBS

ROOT = Path(__file__).resolve().parents[4]
LIMIT_S = 1.0
VALID = [path.read_bytes() for path in sorted((ROOT / "configs").glob("*.yaml"))]
# What is wrong with a file as a whole has no line.
WHOLE = re.compile(r"is empty; wanted a job|is UTF-16 text; save it as UTF-8|and \d+ more$")
SCALARS = (  # noqa: SIM905
    "no yes 012 1e5 1e999 12:30:45 2026-11-20 ~ null true .nan -.inf 0x1F 1_000 9223372036854775808 '' '7' \"\\0\" @f "
    "&a *a !!python/name:os.system !x <<: *a - ? : [ ] { } , # % | > ` \t \x00 \x85 \u2028 \ufeff \U0001f600 "
    "--- ... %YAML [] {} [[]] {a: b} 'x \"x \\ é"
).split(" ")
KEYS = (  # noqa: SIM905
    "name command workdir env model parallel generation cluster kind ckpt_dir max_seq_len seed prompts dialogs text "
    "temperature stop nnodes nproc_per_node image time extra setup volumes master_addr gpus walltime x <<"
).split()


def edit_bytes(draw: st.DrawFn, data: bytes) -> bytes:
    """Some bytes removed, doubled, moved, or others put in."""
    start = draw(st.integers(0, len(data)))
    end = min(len(data), start + draw(st.integers(0, 12)))
    cut = data[start:end]
    change = draw(st.sampled_from(["remove", "double", "move", "insert", "replace"]))
    if change == "remove":
        return data[:start] + data[end:]
    if change == "double":
        return data[:end] + cut + data[end:]
    if change == "move":
        rest = data[:start] + data[end:]
        there = draw(st.integers(0, len(rest)))
        return rest[:there] + cut + rest[there:]
    new = draw(st.binary(max_size=8) | st.sampled_from([each.encode() for each in SCALARS]))
    return data[:start] + new + data[end if change == "replace" else start :]


def edit_lines(draw: st.DrawFn, data: bytes) -> bytes:
    """A line removed, doubled, moved, indented, or with another key or value."""
    lines = data.split(b"\n")
    index = draw(st.integers(0, len(lines) - 1))
    line = lines[index]
    change = draw(st.sampled_from(["remove", "double", "move", "indent", "dedent", "key", "value", "comment", "end"]))
    key, colon, _ = line.partition(b":")
    value = draw(st.sampled_from(SCALARS)).encode()
    moved = [*lines[:index], *lines[index + 1 :]]
    if change == "move":
        moved.insert(draw(st.integers(0, len(moved))), line)
        return b"\n".join(moved)
    indent = b" " * (len(key) - len(key.lstrip()))
    edits = {
        "remove": [],
        "double": [line, line],
        "indent": [b" " * draw(st.integers(1, 3)) + line],
        "dedent": [line[draw(st.integers(1, 3)) :]],
        "key": [indent + draw(st.sampled_from(KEYS)).encode() + b":" + line.partition(b":")[2]],
        "value": [(key + b": " if colon else indent + b"- ") + value],
        "comment": [b"#" + line],
        "end": [line + b" " + value],
    }
    return b"\n".join([*lines[:index], *edits[change], *lines[index + 1 :]])


@st.composite
def edited_files(draw: st.DrawFn) -> bytes:
    """A valid job file after one to four edits."""
    data = draw(st.sampled_from(VALID) | JOBS.map(lambda job: dump_yaml([job]).encode()))
    for _ in range(draw(st.integers(1, 4))):
        data = draw(st.sampled_from([edit_bytes, edit_lines]))(draw, data)
    return data


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.dates() | st.binary(max_size=6)
    | st.sampled_from(SCALARS),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(KEYS) | st.text(max_size=5), inner),
    max_leaves=12,
)  # fmt: skip
# PyYAML's own writer, which uses tags, anchors, and all of its styles.
ANY_YAML = st.builds(
    lambda value, flow, unicode: yaml.safe_dump(value, default_flow_style=flow, allow_unicode=unicode).encode(
        "utf-8", "surrogatepass"
    ),
    VALUES | st.dictionaries(st.sampled_from(KEYS), VALUES, min_size=1),
    st.sampled_from([None, True, False]),
    st.booleans(),
)
ANY_TEXT = st.text().map(lambda text: text.encode("utf-8", "surrogatepass"))
FILES = edited_files() | edited_files() | ANY_YAML | ANY_TEXT | st.binary()


class Seen:
    """What became of the files, for the drill to tell."""

    def __init__(self) -> None:
        self.outcomes: Counter[str] = Counter()
        self.slowest_s = 0.0

    def take(self, path: Path, data: bytes) -> None:
        """Read the file; it is a job, or each line of the refusal has its place. In time, as the processor counts."""
        path.write_bytes(data)
        started = time.process_time()
        lines: list[str] = []
        try:
            read_job(path)
        except RefusedError as refused:
            lines = str(refused).split("\n")
        seconds = time.process_time() - started
        for line in lines:
            assert line.isprintable()
            rest = line.removeprefix(f"{path}:")
            assert rest != line
            assert re.match(r"\d+:\d+: ", rest) or WHOLE.match(rest.strip()), line
        assert seconds < LIMIT_S
        self.outcomes["refused" if lines else "accepted"] += 1
        self.slowest_s = max(self.slowest_s, seconds)


LENIENT: dict[str, Any] = {
    "deadline": None,
    "suppress_health_check": [HealthCheck.too_slow, HealthCheck.data_too_large],
}


@settings(max_examples=500, **LENIENT)
@given(FILES)
def test_any_file_is_a_job_or_refused_with_its_place(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    Seen().take(tmp_path_factory.getbasetemp() / "any.yaml", data)


GOOD = b"model: {ckpt_dir: x}\ngeneration:\n  prompts:\n"
# Each of a megabyte or near it, and slow for some reader.
LARGE = {
    "deep lists": b"[" * 2**20,
    "deep mappings": b"{a: " * 2**18,
    "keys in a line": b"a: " * 349_000,
    "lists": b"x: [" + b"[], " * 250_000,
    "mappings": b"x: [" + b"{a: 1}, " * 130_000,
    "empty keys": b"? \n" * 349_000,
    "keys": b"".join(b"k%d: 1\n" % number for number in range(90_000)),
    "keys of a section": GOOD + b"    - a\n" + b"".join(b"  temprature%d: 1\n" % number for number in range(20_000)),
    "wrong prompts": GOOD + b"".join(b"    - %d\n" % number for number in range(45_000)),
    "prompts": GOOD + b"".join(b"    - prompt %d\n" % number for number in range(45_000)),
    "a long prompt": GOOD + b"    - '" + b"word " * 200_000 + b"'\n",
    "an open quote": b'a: "' + b"x " * 520_000,
    "a long key": b"x" * (2**20 - 3) + b": 1",
    "directives": b"%TAG !a! b\n" * 90_000,
    "anchors": b"- &a b\n" * 149_000,
    "comments": b"#\n" * 520_000,
}


@pytest.mark.parametrize("data", LARGE.values(), ids=LARGE)
def test_a_megabyte_of_anything_is_judged_at_once(tmp_path: Path, data: bytes) -> None:
    Seen().take(tmp_path / "job.yaml", data)


@pytest.mark.drill
def test_ten_thousand_files_are_jobs_or_refused_with_their_places(tmp_path: Path) -> None:
    seen = Seen()

    @settings(max_examples=10_000, database=None, **LENIENT)
    @given(FILES)
    def drill(data: bytes) -> None:
        seen.take(tmp_path / "any.yaml", data)

    drill()
    told = ", ".join(f"{count} {outcome}" for outcome, count in seen.outcomes.most_common())
    print(f"\n{seen.outcomes.total()} files: {told}; the slowest took {seen.slowest_s * 1000:.0f} ms")
    assert seen.outcomes.total() >= 10_000
