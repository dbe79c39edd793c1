"""A job written as a file again: nothing is lost, and only what was set is written."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from hypothesis import given, settings

from launcher.settings.job import Job, read_job
from launcher.settings.job_text import full_job_text, job_text
from launcher.settings.schema import FileName
from launcher.settings.yaml_file import dump_yaml
from tests.unit.launcher.settings.jobs import JOBS


def without_host(job: Job) -> Job:
    """The job for all hosts alike, and nowhere to be sent to."""
    parallel = replace(job.options.parallel, node_rank=None, rdzv_endpoint=None, rdzv_id=None)
    return replace(job, options=replace(job.options, parallel=parallel), cluster=None)


def read_and_read_again(folder: Path, document: dict[str, Any], write: Callable[[Job], str]) -> tuple[Job, Job]:
    """The job of a document, and that of what is written of it."""
    path, again = folder / "job.yaml", folder / "again.yaml"
    path.write_text(dump_yaml([document]), encoding="utf-8", newline="")
    job = read_job(path)
    again.write_text(write(job), encoding="utf-8", newline="")
    return job, read_job(again)


@settings(max_examples=60, deadline=None)
@given(JOBS)
def test_a_job_that_is_written_and_read_again_is_the_same(tmp_path_factory: Any, document: dict[str, Any]) -> None:
    job, again = read_and_read_again(tmp_path_factory.getbasetemp(), document, job_text)
    assert again == without_host(job)


@settings(max_examples=60, deadline=None)
@given(JOBS)
def test_a_job_with_every_setting_is_the_same_job(tmp_path_factory: Any, document: dict[str, Any]) -> None:
    job, again = read_and_read_again(tmp_path_factory.getbasetemp(), document, full_job_text)
    assert again == job


def test_a_list_of_a_text_that_begins_with_an_at_sign_is_no_file(tmp_path: Path) -> None:
    path, again = tmp_path / "job.yaml", tmp_path / "again.yaml"
    path.write_text("model: {ckpt_dir: x}\ngeneration: {prompts: ['@x']}\n")
    again.write_text(job_text(read_job(path)))
    (prompt,) = getattr(read_job(again).options.generation, "prompts")  # noqa: B009
    assert (prompt, isinstance(prompt, FileName)) == ("@x", False)


def test_the_text_of_a_job_holds_what_was_set_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "job.yaml"
    path.write_text(
        "name: x\nworkdir: here\nenv: {NCCL_DEBUG: 'no'}\nmodel: {ckpt_dir: demo, max_seq_len: 512}\n"
        "generation: {prompts: '@p.txt', temperature: 0, stop: ['12:30', \"a\\nb\\n\"]}\n"
        "parallel: {nnodes: 2, node_rank: 1, rdzv_endpoint: 'h:1', rdzv_id: x}\ncluster: {kind: slurm, time: '5'}\n"
    )
    assert job_text(read_job(path, ["generation.seed=7"])) == (
        f"name: x\ncommand: complete\nworkdir: {tmp_path}/here\nenv:\n  NCCL_DEBUG: 'no'\n"
        f"model:\n  ckpt_dir: {tmp_path}/demo\nparallel:\n  nnodes: 2\n"
        "generation:\n  temperature: 0.0\n  seed: 7\n  stop:\n    - '12:30'\n    - |\n      a\n      b\n"
        f"  prompts: '@{tmp_path}/p.txt'\n"
    )
