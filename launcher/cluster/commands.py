"""The commands `submit`, `status`, `logs` and `cancel`."""

import json
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from launcher.cluster.kinds import Status, Submitted
from launcher.cluster.known import cluster_of
from launcher.cluster.records import Record, find, remember_end, remembered
from launcher.cluster.submitting import SubmitOptions, submit_command
from launcher.command import Arguments, Command
from launcher.console import print_result, say
from launcher.guard import stop_signals
from launcher.settings.flags import convert_flags
from launcher.settings.schema import setting, settings_of
from parallel.environment import Environment
from parallel.errors import RefusedError

# `status` without a job lists so many.
_LISTED = 20
_ENDED = ("done", "failed", "cancelled")


@dataclass(frozen=True, slots=True, kw_only=True)
class StatusOptions:
    json: bool = setting("print one JSON object a line for each job", default=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class LogsOptions:
    follow: bool = setting("go on until the job has ended", default=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class CancelOptions:
    pass


def _status(words: Sequence[str], flags: Mapping[str, str], _env: Environment, _arguments: Arguments) -> int:
    options = StatusOptions(**convert_flags("status", settings_of(StatusOptions), flags))
    show = _as_json if options.json else _as_line
    if words:
        submitted, record = _named("status", words)
        print_result(show(submitted, _ask(submitted, record)))
        return 0
    records = remembered()
    if not records:
        say("no job was submitted from here")
    unreached: dict[str, Status] = {}
    for record in records[:_LISTED]:
        print_result(show(record.submitted, _ask_once(record, unreached)))
    if len(records) > _LISTED:
        say(f"{len(records) - _LISTED} older jobs are not listed; name one to see it")
    return 0


def _ask(submitted: Submitted, record: Record | None) -> Status:
    """How a job is; an end that was seen is remembered, as the cluster will forget it."""
    if record is not None and record.ended is not None:
        return record.ended
    status = cluster_of(submitted.kind).status(submitted)
    if record is not None:
        _keep_end(record, status)
    return status


def _keep_end(record: Record, status: Status) -> None:
    if status.state in _ENDED:
        remember_end(record, status)


def _ask_once(record: Record, unreached: dict[str, Status]) -> Status:
    """How a job of the list is. A cluster that does not answer is not asked again for each."""
    kind = record.submitted.kind
    if kind in unreached and record.ended is None:
        return unreached[kind]
    try:
        return _ask(record.submitted, record)
    except RefusedError as error:
        unreached[kind] = Status(state="unknown", word="", detail=str(error))
        return unreached[kind]


def _as_line(submitted: Submitted, status: Status) -> str:
    code = f"exit code {status.exit_code}" if status.exit_code else ""
    more = ", ".join(filter(None, (code, status.detail)))
    return f"{submitted.job_id}  {submitted.name or '-'}  {status.state}{': ' if more else ''}{more}\n"


def _as_json(submitted: Submitted, status: Status) -> str:
    told = {
        "job_id": submitted.job_id,
        "name": submitted.name,
        "kind": submitted.kind,
        "state": status.state,
        "word": status.word,
        "detail": status.detail,
        "exit_code": status.exit_code,
        "folder": submitted.folder,
        "output": submitted.output,
    }
    return json.dumps(told) + "\n"


def _logs(words: Sequence[str], flags: Mapping[str, str], _env: Environment, _arguments: Arguments) -> int:
    options = LogsOptions(**convert_flags("logs", settings_of(LogsOptions), flags))
    submitted, _ = _named("logs", words)
    if signal.SIGINT in stop_signals():
        # Who has read enough types Ctrl-C: nothing went wrong, nothing is to be said.
        signal.signal(signal.SIGINT, lambda number, _: os._exit(128 + number))
    cluster_of(submitted.kind).logs(submitted, options.follow, _show)
    return 0


def _show(data: bytes) -> None:
    """What a job wrote, as it wrote it."""
    if sys.stdout is None:
        raise RefusedError("stdout is closed, and the job's output is printed there")
    try:
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        raise RefusedError(f"the job's output cannot be written to stdout: {error.strerror}") from None


def _cancel(words: Sequence[str], flags: Mapping[str, str], _env: Environment, _arguments: Arguments) -> int:
    convert_flags("cancel", settings_of(CancelOptions), flags)
    submitted, record = _named("cancel", words)
    if record is not None and record.ended is not None:
        say(f"job {submitted.job_id} has ended already: {record.ended.state}")
        return 0
    cluster = cluster_of(submitted.kind)
    cluster.cancel(submitted)
    if record is not None:
        status = cluster.status(submitted)
        if status.state == "unknown":  # it was removed, and with it all that was known of it
            status = Status(state="cancelled", word="", detail="by `shardrun cancel`")
        _keep_end(record, status)
    return 0


def _named(command: str, words: Sequence[str]) -> tuple[Submitted, Record | None]:
    """The job that is meant, by its id or its name. A number that is not remembered may still be one of Slurm's."""
    if len(words) != 1:
        raise RefusedError(f"{command} wants one job, by its id or its name: shardrun {command} JOB")
    word = words[0]
    record = find(word)
    if record is not None:
        return record.submitted, record
    if word.isascii() and word.isdecimal():
        return Submitted(kind="slurm", job_id=word, name="", folder=""), None
    known = [f"{record.submitted.job_id} ({record.submitted.name})" for record in remembered()[:_LISTED]]
    there = f"there are {', '.join(known)}" if known else "none was submitted from here"
    raise RefusedError(f"no job '{word}' is known; {there}")


COMMANDS: dict[str, Command] = {
    "submit": Command(
        "shardrun submit JOB.yaml [section.key=value ...] [--dry_run]",
        "sends a job file to the cluster that it names",
        lambda: settings_of(SubmitOptions),
        submit_command,
    ),
    "status": Command(
        "shardrun status [JOB_ID|NAME]",
        "tells how a job is, or all that were submitted from here",
        lambda: settings_of(StatusOptions),
        _status,
    ),
    "logs": Command(
        "shardrun logs JOB_ID|NAME [--follow]",
        "prints the output of a job",
        lambda: settings_of(LogsOptions),
        _logs,
    ),
    "cancel": Command(
        "shardrun cancel JOB_ID|NAME",
        "ends a job",
        lambda: settings_of(CancelOptions),
        _cancel,
    ),
}
