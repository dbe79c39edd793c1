"""A job as the text of a job file: what `submit` freezes, and what `--dry_run` shows. Either can be run as it is."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from launcher.settings.job import Job
from launcher.settings.schema import FileName, Setting, settings_of
from launcher.settings.section import MAY_BE_FILES, PATHS
from launcher.settings.yaml_file import dump_yaml

# What the command line says on each host; the same file serves all of them.
_OF_ONE_HOST = frozenset({"node_rank", "rdzv_endpoint", "rdzv_id"})
_SECTIONS = ("model", "parallel", "generation")


def job_text(job: Job) -> str:
    """The job as YAML, overrides laid in and paths absolute: only what is not a default.

    Without `cluster`, which has been followed when the job runs, and without what each host is told on its command
    line. Reading it gives the same job but for these.
    """
    document = _top(job)
    for name in _SECTIONS:
        section = getattr(job.options, name)
        settings = settings_of(type(section))
        given = {key: _written(key, getattr(section, key)) for key in settings if key not in _OF_ONE_HOST}
        kept = {key: value for key, value in given.items() if not _is_default(settings[key], section)}
        if kept:
            document[name] = kept
    return dump_yaml([document])


def full_job_text(job: Job) -> str:
    """The job as YAML with every setting that there is, and `# default` behind those that were left alone."""
    text = dump_yaml([_top(job)])
    sections: dict[str, Any] = {name: getattr(job.options, name) for name in _SECTIONS}
    if job.cluster is not None:
        sections["cluster"] = job.cluster
    for name, section in sections.items():
        text += f"{name}:\n"
        for key, setting in settings_of(type(section)).items():
            lines = dump_yaml([{name: {key: _written(key, getattr(section, key))}}]).splitlines()[1:]
            marked = len(lines) == 1 and _is_default(setting, section)
            text += "\n".join(lines) + ("  # default\n" if marked else "\n")
    return text


def _top(job: Job) -> dict[str, object]:
    document: dict[str, object] = {"name": job.name, "command": job.command}
    if job.workdir is not None:
        document["workdir"] = str(Path(job.workdir).absolute())
    if job.env:
        document["env"] = dict(job.env)
    return document


def _is_default(setting: Setting, section: Any) -> bool:
    return not setting.required and bool(getattr(section, setting.name) == setting.default)


def _written(name: str, value: object) -> object:
    """A value as a job file holds it."""
    if isinstance(value, list) and len(value) == 1 and isinstance(value[0], FileName):
        value = str(value[0])
    if name in PATHS and isinstance(value, str):
        return str(Path(value).absolute())
    if name in MAY_BE_FILES and isinstance(value, str) and value.startswith("@"):
        return f"@{Path(value[1:]).absolute()}"
    return value if not isinstance(value, Mapping) else dict(value)
