"""What is remembered of the jobs that were submitted from here: a small file for each."""

import contextlib
import json
import os
import tempfile
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from launcher.cluster.kinds import Status, Submitted
from launcher.console import say
from parallel.errors import RefusedError

# So many jobs are remembered; the oldest are forgotten.
_MOST = 500


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """A job that was submitted, the file that remembers it, and how it ended, once that has been seen."""

    path: Path
    submitted: Submitted
    ended: Status | None = None


def remember(submitted: Submitted) -> None:
    """Keep a job in mind. The job runs all the same where that cannot be: then it is said."""
    stamp = time.strftime("%Y%m%d-%H%M%S", time.localtime(submitted.submitted_at))
    path = state_folder(os.environ) / f"{stamp}-{submitted.kind}-{submitted.job_id}.json"
    try:
        _write(path, submitted, None)
        for old in sorted(path.parent.glob("*.json"))[:-_MOST]:
            old.unlink(missing_ok=True)
    except OSError as error:
        say(
            f"warning: the job is submitted, but {path.parent} cannot be written to ({error.strerror}): "
            "`shardrun status` will not list it"
        )


def remember_end(record: Record, status: Status) -> None:
    """Keep how a job ended: the cluster forgets it."""
    with contextlib.suppress(OSError):
        _write(record.path, record.submitted, status)


def remembered() -> list[Record]:
    """The jobs that are remembered, the newest first. Files that are no records are passed over."""
    paths = sorted(state_folder(os.environ).glob("*.json"), reverse=True)
    return [record for path in paths if (record := _read(path)) is not None]


def find(word: str) -> Record | None:
    """The newest job with this id, else the newest with this name."""
    records = remembered()
    by_id = [record for record in records if record.submitted.job_id == word]
    by_name = [record for record in records if record.submitted.name == word]
    return next(iter(by_id + by_name), None)


def state_folder(environ: Mapping[str, str]) -> Path:
    """The folder of the records: SHARDRUN_STATE_DIR, or what the XDG directories say."""
    if named := environ.get("SHARDRUN_STATE_DIR"):
        return Path(named).absolute() / "jobs"
    state = environ.get("XDG_STATE_HOME", "")
    try:
        # A path that is not absolute is to be ignored, by XDG's rules.
        base = Path(state) if state.startswith("/") else Path.home() / ".local" / "state"
    except RuntimeError:
        raise RefusedError(
            "no home folder is known (HOME); name a folder for the records of jobs with SHARDRUN_STATE_DIR"
        ) from None
    return base / "shardrun" / "jobs"


def _write(path: Path, submitted: Submitted, ended: Status | None) -> None:
    """Write a record whole, or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"submitted": asdict(submitted), "ended": None if ended is None else asdict(ended)}, indent=1)
    handle, partial = tempfile.mkstemp(dir=path.parent, prefix=".", suffix=".partial")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text + "\n")
        Path(partial).replace(path)
    except BaseException:
        Path(partial).unlink(missing_ok=True)
        raise


def _read(path: Path) -> Record | None:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        ended = found["ended"]
        return Record(
            path=path,
            submitted=_built(Submitted, found["submitted"]),
            ended=None if ended is None else _built(Status, ended),
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _built(kind: Any, found: dict[str, Any]) -> Any:
    """A dataclass from a file that another version may have written: what is not known here is passed over."""
    names = {field.name for field in fields(kind)}
    return kind(**{name: value for name, value in found.items() if name in names})
