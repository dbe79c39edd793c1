"""The command `submit`: from a job file to a job on the cluster that the file names."""

import contextlib
import json
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from launcher.cluster.kinds import Cluster, Submitted
from launcher.cluster.known import CALLED, cluster_of
from launcher.cluster.records import remember
from launcher.command import Arguments
from launcher.console import print_result, say
from launcher.generating.preflight import preflight
from launcher.settings.flags import convert_flags
from launcher.settings.job import Job, read_job
from launcher.settings.options import ChatSection
from launcher.settings.schema import setting, settings_of
from parallel.environment import Environment
from parallel.errors import RefusedError

# What stands at the top of a job file, beside its sections.
_OF_JOB = ("name", "command", "workdir")
_NO_CLUSTER = (
    "{path}: says no cluster to send the job to; add a section to it, for Slurm\n"
    "  cluster:\n    kind: slurm\n    partition: NAME\n"
    "or for Kubernetes\n"
    "  cluster:\n    kind: kubernetes\n    image: IMAGE"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class SubmitOptions:
    dry_run: bool = setting("print every file that would be written, and what would be run; do nothing", default=False)
    folder: str = setting("folder in which the job gets one of its own; all nodes must see it", default="shardrun-jobs")
    json: bool = setting("print one JSON object", default=False)


def submit_command(words: Sequence[str], flags: Mapping[str, str], env: Environment, _arguments: Arguments) -> int:
    if env.launched:
        raise RefusedError("submit is typed once, and not for each rank: leave torchrun out")
    if not words:
        raise RefusedError("submit wants a job file: shardrun submit JOB.yaml [section.key=value ...]")
    of_job = {name: value for name, value in flags.items() if "." in name or name in _OF_JOB}
    own = {name: value for name, value in flags.items() if name not in of_job}
    options = SubmitOptions(**convert_flags("submit", settings_of(SubmitOptions), own))
    job = read_job(Path(words[0]), words[1:], of_job)
    if job.cluster is None:
        raise RefusedError(_NO_CLUSTER.format(path=words[0]))
    _check(job)
    cluster = cluster_of(job.cluster.kind)
    folder = _new_folder(Path(options.folder), job.name)
    files = cluster.files(job, folder)
    if options.dry_run:
        print_result(_dry_run(job, folder, files))
        return 0
    submitted = _submit(cluster, job, folder, files)
    remember(submitted)
    _tell(submitted, options.json)
    return 0


def _check(job: Job) -> None:
    """Refuse what cannot be run on any node, and what can be seen to be wrong from here."""
    section = job.options.generation
    if isinstance(section, ChatSection) and section.dialogs is None:
        raise RefusedError("a chat without generation.dialogs is one at the terminal, and a job has none; give dialogs")
    assert job.cluster is not None
    if job.cluster.kind != "slurm":
        return  # its paths are those inside a container
    ranks = job.options.parallel.nproc_per_node
    if not Path(job.options.model.ckpt_dir).exists():
        say(f"note: {job.options.model.ckpt_dir} is not there on this host; it is checked when the job runs")
    elif ranks is None or isinstance(ranks, int):
        preflight(job.options, job.options.parallel.nnodes * (ranks or 1))


def _new_folder(base: Path, name: str) -> Path:
    """A path for the job's folder at which nothing stands yet."""
    stem = base.absolute() / f"{name}-{time.strftime('%Y%m%d-%H%M%S')}"
    number, folder = 1, stem
    while folder.exists():
        number += 1
        folder = stem.with_name(f"{stem.name}-{number}")
    return folder


def _dry_run(job: Job, folder: Path, files: Mapping[str, str]) -> str:
    """What would be written and run, for people to read."""
    assert job.cluster is not None
    parts = [f"# {folder / name}\n{text.rstrip()}\n" for name, text in files.items()]
    would = [f"# would be run: {line.format(folder=folder)}" for line in CALLED[job.cluster.kind]]
    return "\n".join([*parts, "\n".join(would) + "\n"])


def _submit(cluster: Cluster, job: Job, folder: Path, files: Mapping[str, str]) -> Submitted:
    """Write the files and submit. Where that is refused nothing is left, unless the message names the folder."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        # The job's variables stand in it, and may be secrets.
        folder.mkdir(mode=0o700)
    except OSError as error:
        raise _unwritable(folder, error) from None
    try:
        for name, text in files.items():
            (folder / name).write_text(text, encoding="utf-8")
        return cluster.submit(job, folder)
    except OSError as error:
        _remove(folder)
        raise _unwritable(folder, error) from None
    except RefusedError as error:
        if str(folder) not in str(error):
            _remove(folder)
        raise


def _unwritable(folder: Path, error: OSError) -> RefusedError:
    return RefusedError(
        f"{folder}: the job's files cannot be written: {error.strerror}; name another folder with --folder"
    )


def _remove(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    with contextlib.suppress(OSError):
        folder.parent.rmdir()  # made for this job, if it is empty


def _tell(submitted: Submitted, as_json: bool) -> None:
    job_id = submitted.job_id
    if as_json:
        print_result(json.dumps(asdict(submitted)) + "\n")
    else:
        print_result(f"submitted {submitted.name}: {job_id}\n")
    shared = ", which every node must see" if submitted.kind == "slurm" else ""
    say(f"its files are in {submitted.folder}{shared}")
    say(f"next: shardrun status {job_id}, shardrun logs {job_id} --follow, shardrun cancel {job_id}")
