"""What of a job may stand in an sbatch script: checked before anything is written, all errors at once."""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from launcher.settings.cluster_options import SlurmSection
from launcher.settings.job import Job
from parallel.errors import RefusedError

_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_OPTION = re.compile(r"[a-z][a-z0-9]*([-_][a-z0-9]+)*")
_WORDS = (re.compile(r"[A-Za-z0-9_.,@+:/-]+"), "names, as gpu or gpu,long")
_NODES = (re.compile(r"[A-Za-z0-9_.,\[\]-]+"), "node names, as n1,n2 or gpu[01-08]")
# By key: what fits whole, and how it is told.
_FORMS: dict[str, tuple[re.Pattern[str], str]] = {
    "partition": _WORDS,
    "account": _WORDS,
    "qos": _WORDS,
    "time": (
        re.compile(r"\d+(:\d\d){0,2}|\d+-\d\d?(:\d\d){0,2}|UNLIMITED|INFINITE"),
        "minutes (30), minutes and seconds (30:00), H:MM:SS or D-HH:MM:SS",
    ),
    "mem": (re.compile(r"\d+[KMGT]?"), "a whole number with K, M, G or T behind it, as 64G"),
    "nodelist": _NODES,
    "exclude": _NODES,
}
# sbatch takes a backslash in a script for its own, inside of quotes too.
_LINE = "one line of text, without a backslash"
# What the script says by other settings, and what would make it another kind of job; and where it is set.
_TAKEN = {
    "job-name": "name",
    "nodes": "parallel.nnodes",
    "ntasks": "parallel.nproc_per_node (Slurm starts one task a node, and that starts the ranks)",
    "ntasks-per-node": "parallel.nproc_per_node (Slurm starts one task a node, and that starts the ranks)",
    "open-mode": "",
    "no-requeue": "cluster.requeue",
    "kill-on-invalid-dep": "",
    "array": "",
    "wrap": "",
    "parsable": "",
    "test-only": "",
    "wait": "",
    "help": "",
    "usage": "",
    "version": "",
}


def check_job(job: Job, section: SlurmSection, folder: Path) -> None:
    """RefusedError lists every value that cannot stand in the script, a line each."""
    errors = [*_name_errors(job, folder), *_section_errors(section), *_extra_errors(section.extra or {})]
    errors += [*_setup_errors(section.setup or ()), *_env_errors(job.env)]
    if errors:
        raise RefusedError("\n".join(errors))


def _name_errors(job: Job, folder: Path) -> Iterator[str]:
    if not _NAME.fullmatch(job.name):
        yield f"name is {job.name!r}; wanted 1 to 64 letters, digits, '.', '_' and '-'"
    if not _is_line(str(folder)):
        yield f"the job's folder would be {str(folder)!r}; wanted a path that is {_LINE}: give --folder"


def _section_errors(section: SlurmSection) -> Iterator[str]:
    for key, (form, wanted) in _FORMS.items():
        value = getattr(section, key)
        if value is not None and not form.fullmatch(value):
            yield f"cluster.{key} is {value!r}; wanted {wanted}"
    for key in ("constraint", "output"):
        value = getattr(section, key)
        if value is not None and not _is_line(value):
            yield f"cluster.{key} is {value!r}; wanted {_LINE}"


def _extra_errors(extra: Mapping[str, str]) -> Iterator[str]:
    known = {name.replace("_", "-") for name in SlurmSection.__dataclass_fields__}
    for key, value in extra.items():
        option = key.replace("_", "-")
        if not _OPTION.fullmatch(key):
            yield f"cluster.extra has {key!r}; wanted the name of an option of sbatch, without --, as mail-user"
        elif option in _TAKEN:
            where = f"; set {_TAKEN[option]}" if _TAKEN[option] else ""
            yield f"cluster.extra.{key} cannot be given: the script says --{option} itself{where}"
        elif option in known:
            yield f"cluster.extra.{key} has a key of its own; write cluster.{option.replace('-', '_')}"
        elif not _is_line(value):
            yield f"cluster.extra.{key} is {value!r}; wanted {_LINE}"


def _setup_errors(lines: list[str] | tuple[()]) -> Iterator[str]:
    for number, line in enumerate(lines):
        if not line.isprintable():
            yield f"cluster.setup, item {number}, is {line!r}; wanted one line of shell"


def _env_errors(env: Mapping[str, str]) -> Iterator[str]:
    for name, value in env.items():
        if not _VARIABLE.fullmatch(name):
            yield f"env has {name!r}; wanted letters, digits and '_'"
        elif not value.isprintable():
            yield f"env.{name} is {value!r}; wanted one line of text"


def _is_line(value: str) -> bool:
    return value.isprintable() and "\\" not in value
