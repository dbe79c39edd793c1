"""Slurm, as one kind of cluster: sbatch, scontrol and scancel."""

import os
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

from launcher.cluster.kinds import Status, Submitted
from launcher.cluster.slurm.calls import Answer, ControllerError, call, submitting_environment
from launcher.cluster.slurm.checks import check_job
from launcher.cluster.slurm.following import Output, follow_output
from launcher.cluster.slurm.script import JOB_FILE, JOB_SCRIPT, NODE_SCRIPT, job_script, node_script, sbatch_options
from launcher.cluster.slurm.states import decide, decide_forgotten, read_fields, read_result
from launcher.console import say
from launcher.settings.cluster_options import SlurmSection
from launcher.settings.job import Job
from launcher.settings.job_text import job_text
from parallel.errors import RefusedError

# How long `cancel` waits for the job's processes to have gone.
_GONE_S = 15.0
_POLL_S = 0.5


class Slurm:
    """Satisfies `kinds.Cluster`."""

    def files(self, job: Job, folder: Path) -> dict[str, str]:
        section = _section(job)
        check_job(job, section, folder)
        return {
            JOB_FILE: job_text(job),
            NODE_SCRIPT: node_script(job, section, folder),
            JOB_SCRIPT: job_script(job, section, folder),
        }

    def submit(self, job: Job, folder: Path) -> Submitted:
        environ = submitting_environment(os.environ, sbatch_options(job, _section(job), folder))
        script = str(folder / JOB_SCRIPT)
        checked = call(["sbatch", "--test-only", script], environ)
        if checked.code:
            raise RefusedError(f"Slurm refuses the job: {checked.reason}{_hint(checked, job)}")
        job_id = _submitted_id(script, environ, folder)
        output = _section(job).output or str(folder / "slurm-%j.log")
        return Submitted(
            kind="slurm",
            job_id=job_id,
            name=job.name,
            folder=str(folder),
            output=_output_of(job_id) or output.replace("%j", job_id),
            submitted_at=time.time(),
        )

    def status(self, known: Submitted) -> Status:
        result = read_result(known.folder, known.job_id)
        try:
            fields = _fields(known.job_id)
        except ControllerError:
            if result is None:
                raise
            return decide_forgotten(result)
        if known.folder and fields and not fields.get("Command", known.folder).startswith(known.folder):
            fields = {}  # the number of another job by now, or of another cluster
        return decide(fields, result) if fields else decide_forgotten(result)

    def logs(self, known: Submitted, follow: bool, show: Callable[[bytes], None]) -> None:
        path = Path(known.output or _output_of(known.job_id))
        if path == Path():
            raise RefusedError(f"job {known.job_id}: where its output is, neither Slurm nor shardrun knows any more")
        output = Output(path, show)
        if follow:
            has_result = partial(_has_result, known)
            status = follow_output(output, lambda: self.status(known), has_result, known.job_id)
            say(f"job {known.job_id} is {_in_words(status)}")
        else:
            output.show_new()
        if not output.exists:
            status = self.status(known)
            hint = "" if status.state == "waiting" else "; was its node able to write there?"
            raise RefusedError(f"{path}: there is no output; the job is {_in_words(status)}{hint}")

    def cancel(self, known: Submitted) -> None:
        status = self.status(known)
        if status.state not in ("waiting", "running"):
            say(f"job {known.job_id} has ended already: {_in_words(status)}")
            return
        answer = call(["scancel", known.job_id])
        if answer.code:
            raise RefusedError(f"job {known.job_id} cannot be cancelled: {answer.reason}")
        deadline = time.monotonic() + _GONE_S
        while (status := self.status(known)).state in ("waiting", "running"):
            if time.monotonic() > deadline:
                say(f"job {known.job_id} is cancelled, but {status.detail or status.word}; Slurm kills them in the end")
                return
            time.sleep(_POLL_S)
        say(f"job {known.job_id} is {_in_words(status)}")


SLURM = Slurm()


def _has_result(known: Submitted) -> bool:
    return read_result(known.folder, known.job_id) is not None


def _section(job: Job) -> SlurmSection:
    assert isinstance(job.cluster, SlurmSection)
    return job.cluster


def _submitted_id(script: str, environ: Mapping[str, str], folder: Path) -> str:
    """Submit; the number of the job."""
    try:
        answer = call(["sbatch", "--parsable", script], environ)
    except ControllerError as error:
        raise RefusedError(
            f"{error}; whether the job was submitted is not known: look at `squeue --me`; its files are in {folder}"
        ) from None
    # With several clusters: 17;name.
    job_id = answer.out.strip().partition(";")[0]
    if answer.code or not job_id.isdecimal():
        raise RefusedError(f"Slurm refuses the job: {answer.reason}")
    return job_id


def _fields(job_id: str) -> dict[str, str]:
    """What Slurm knows of a job; empty when it has forgotten it."""
    answer = call(["scontrol", "show", "job", job_id])
    if "Invalid job id" in answer.err:
        return {}
    if answer.code:
        raise RefusedError(f"Slurm does not tell how job {job_id} is: {answer.reason}")
    return read_fields(answer.out)


def _output_of(job_id: str) -> str:
    """The file of the job's output, where Slurm says it."""
    try:
        return _fields(job_id).get("StdOut", "").replace("%%", "%")
    except RefusedError:
        return ""


def _in_words(status: Status) -> str:
    return status.state + (f": {status.detail}" if status.detail else "")


def _hint(refused: Answer, job: Job) -> str:
    """What to look at, for what Slurm complains of in general words."""
    section, nodes = _section(job), job.options.parallel.nnodes
    if "partition" in refused.err.lower():
        names = call(["sinfo", "--noheader", "--format=%P"]).out.split()
        return f"; cluster.partition is {section.partition!r}, there are {', '.join(names)}"
    if "node configuration" in refused.err or "Node count" in refused.err:
        keys = ("gpus_per_node", "cpus_per_task", "mem", "constraint", "nodelist")
        given = {key: getattr(section, key) for key in keys}
        asked = [f"{nodes} node{'s' if nodes > 1 else ''} (parallel.nnodes)"]
        asked += [f"cluster.{key} {value}" for key, value in given.items() if value is not None]
        return f"; it asks for {', '.join(asked)}; `sinfo -N -l` shows what there is"
    return ""
