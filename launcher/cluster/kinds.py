"""What every kind of cluster can do for a job, and what is remembered of a job that was submitted."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from launcher.settings.job import Job


@dataclass(frozen=True, slots=True, kw_only=True)
class Submitted:
    """A job that was handed to a cluster, as it is remembered in a file."""

    kind: str
    # Slurm's number, or the name of the Kubernetes Job.
    job_id: str
    name: str
    # Where the job file, the script or manifests, and with Slurm the output stand.
    folder: str
    # Slurm: the file of the job's output. Kubernetes: "".
    output: str = ""
    # Kubernetes: the namespace ("": kubectl's own) and Job or TrainJob.
    namespace: str = ""
    target: str = ""
    submitted_at: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """How a job is: the cluster's word for it, and what is known besides."""

    state: Literal["waiting", "running", "done", "failed", "cancelled", "unknown"]
    # The cluster's own word, such as COMPLETING.
    word: str
    # For people: reason, nodes, since when.
    detail: str = ""
    exit_code: int | None = None


class Cluster(Protocol):
    """One kind of cluster. Every method raises RefusedError with one sentence where it cannot."""

    def files(self, job: Job, folder: Path) -> dict[str, str]:
        """What `submit` writes into `folder`, by file name, the frozen job file among them. Pure: `--dry_run`
        prints it. `folder` is where the files will stand; nothing is written here."""
        ...

    def submit(self, job: Job, folder: Path) -> Submitted:
        """Check with the cluster's own dry run, then submit what was written to `folder`.

        Where it raises, `folder` is removed, unless the message names it: then the user is to go on from there.
        """
        ...

    def status(self, known: Submitted) -> Status: ...

    def logs(self, known: Submitted, follow: bool, show: Callable[[bytes], None]) -> None:
        """Show the output so far; with `follow`, until the job has ended."""
        ...

    def cancel(self, known: Submitted) -> None: ...
