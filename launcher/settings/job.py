"""Job files: the settings of a run in YAML, with the same names as the flags, in sections.

    name: demo
    command: complete
    model: {ckpt_dir: demo}
    parallel: {nproc_per_node: 2}
    generation: {prompts: [Once upon a time]}

Paths in a file are relative to the file's folder, and those in overrides on the command line to the current one.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from launcher.settings.cluster_options import ClusterSection
from launcher.settings.job_file import read_job_file
from launcher.settings.options import GENERATION_SECTIONS, RunOptions, sections_of
from launcher.settings.overrides import lay_over, texts_of
from launcher.settings.places import Located, Place, Problems
from launcher.settings.schema import Setting
from launcher.settings.section import Reading, read_section, settings_of_any, shortened
from launcher.settings.top_keys import (
    check_cluster_kind,
    cluster_kinds,
    read_command,
    read_env,
    read_name,
    read_workdir,
    without_kind,
)
from launcher.settings.vocabulary import TOP_KEYS, advice


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A job file with its overrides, whole and checked; paths in it are absolute."""

    name: str
    command: str
    options: RunOptions
    # Where `submit` sends it; None where the file does not say.
    cluster: ClusterSection | None = None
    # The current folder of the ranks, and variables of their environment.
    workdir: str | None = None
    env: dict[str, str] = field(default_factory=dict)


def read_job(path: Path, overrides: Sequence[str] = (), flags: Mapping[str, str] | None = None) -> Job:
    """Read a job file and lay overrides (`section.key=value`) over it.

    RefusedError lists every error at once, a line each: file, line, column, key, what was found, what is wanted.
    """
    problems = Problems()
    given = read_job_file(path, problems)
    lay_over(given, texts_of(overrides, flags or {}), _known, problems)
    return _job(given, path, problems)


def _job(given: Mapping[str, Located], path: Path, problems: Problems) -> Job:
    """The job of what stands at the top of a file, by key."""
    folder = path.resolve().parent
    reading = Reading(folder, Place(str(path), 1, 1), _known(given), problems)
    name = read_name(given.get("name"), path, problems)
    command = read_command(given.get("command"), problems)
    workdir = read_workdir(given.get("workdir"), folder, problems)
    env = read_env(given.get("env"), problems)
    sections = {
        section: read_section(section, kinds, located, reading)
        for section, kinds in _kinds(given).items()
        for located in [_checked(section, kinds, given.get(section), problems)]
    }
    for key, located in given.items():
        if key not in TOP_KEYS:
            more = "" if problems.enough else advice(key, None, reading.known)
            problems.add(located.key_at, f"'{shortened(key)}' is not a section of a job{more}")
    problems.refuse()
    assert command is not None, "a command that there is not is among the problems"
    cluster = sections.pop("cluster", None)
    options = RunOptions(command=command, **sections)
    return Job(name=name, command=command, options=options, cluster=cluster, workdir=workdir, env=env)


def _checked(section: str, kinds: Sequence[type], located: Located | None, problems: Problems) -> Located | None:
    if section != "cluster" or len(kinds) == 1 or located is None:
        return located
    check_cluster_kind(located, problems)
    return without_kind(located)


def _kinds(given: Mapping[str, Located]) -> dict[str, Sequence[type]]:
    """The dataclasses of each section of this job: more than one where command or cluster.kind do not tell which."""
    command = read_command(given.get("command"), Problems())
    kinds: dict[str, Sequence[type]] = {name: [kind] for name, kind in sections_of(command or "complete").items()}
    if command is None:
        kinds["generation"] = list(GENERATION_SECTIONS.values())
    if clusters := cluster_kinds(given.get("cluster")):
        kinds["cluster"] = clusters
    return kinds


def _known(given: Mapping[str, Located]) -> dict[str, dict[str, Setting]]:
    """The settings of each section of this job; those of any cluster where the job names none."""
    known = {name: settings_of_any(kinds) for name, kinds in _kinds(given).items()}
    known.setdefault("cluster", settings_of_any(cluster_kinds(Located({}, Place("")))))
    return known
