"""The JSON Schema of job files: it takes every valid job, and refuses nothing that is read."""

import copy
import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from launcher.settings.job import read_job
from launcher.settings.json_schema import job_schema
from launcher.settings.reference_page import reference_page
from launcher.settings.schema_command import schema_text
from launcher.settings.yaml_file import dump_yaml
from parallel import RefusedError
from tests.unit.launcher.settings.jobs import JOBS

ROOT = Path(__file__).resolve().parents[4]
VALIDATOR = jsonschema.Draft202012Validator(job_schema())
# What somebody might put in the place of anything.
ODD = st.sampled_from(
    [None, True, False, -1, 0, 1, 1.5, 10**12, "", "x", "auto", "@f", [], ["x"], [1], {}, {"kind": "slurm"}]
)
KEYS = st.sampled_from(["command", "kind", "seed", "ckpt_dir", "prompts", "dialogs", "image", "time", "x", "env"])


def test_the_schema_is_one() -> None:
    jsonschema.Draft202012Validator.check_schema(job_schema())


def test_the_committed_schema_and_page_are_those_of_the_settings() -> None:
    assert (ROOT / "docs/job.schema.json").read_text(encoding="utf-8") == schema_text()
    assert (ROOT / "docs/job-files.md").read_text(encoding="utf-8") == reference_page()


@settings(max_examples=60, deadline=None)
@given(JOBS)
def test_every_valid_job_is_valid_by_the_schema(job: dict[str, Any]) -> None:
    assert list(VALIDATOR.iter_errors(job)) == []


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The paths to everything in a document."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(place for key, item in inner for place in places(item, (*path, key)))]


@st.composite
def broken_jobs(draw: st.DrawFn) -> dict[str, Any]:
    """A valid job with something in it replaced, removed or added."""
    job = copy.deepcopy(draw(JOBS))
    *path, last = draw(st.sampled_from([place for place in places(job) if place]))
    holder = job
    for key in path:
        holder = holder[key]
    change = draw(st.sampled_from(["replace", "remove", "add"]))
    if change == "remove":
        del holder[last]
    elif change == "add" and isinstance(holder, dict):
        holder[draw(KEYS)] = draw(ODD)
    else:
        holder[last] = draw(ODD)
    return job


@settings(max_examples=80, deadline=None)
@given(broken_jobs())
def test_what_the_schema_refuses_is_refused_when_it_is_read(tmp_path_factory: Any, job: dict[str, Any]) -> None:
    assume(not VALIDATOR.is_valid(job))
    path = tmp_path_factory.getbasetemp() / "job.yaml"
    path.write_text(dump_yaml([job]), encoding="utf-8", newline="")
    with pytest.raises(RefusedError):
        read_job(path)


@pytest.mark.parametrize(
    "text",
    [
        '{"model": {"ckpt_dir": "x"}, "generation": {"prompts": ["a"], "seed": "1"}}',
        '{"model": {"ckpt_dir": "x"}, "generation": {"dialogs": []}}',
        '{"model": {"ckpt_dir": "x"}}',
        '{"command": "chat", "model": {"ckpt_dir": "x"}, "generation": {"prompts": ["a"]}}',
        '{"command": "chat", "model": {"ckpt_dir": "x"}, "cluster": {"kind": "slurm", "image": "x"}}',
        '{"command": "chat", "model": {"ckpt_dir": "x"}, "cluster": {"kind": "kubernetes"}}',
        '{"command": "chat", "model": {"ckpt_dir": "x"}, "cluster": {}}',
        '{"command": "chat", "model": {"ckpt_dir": "x"}, "name": "a b"}',
        '{"command": "chat", "model": {"ckpt_dir": "x"}, "env": {"1": "x"}}',
    ],
)
def test_the_schema_knows_what_goes_with_what(text: str) -> None:
    assert not VALIDATOR.is_valid(json.loads(text))
