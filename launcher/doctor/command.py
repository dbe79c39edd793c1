"""The `doctor` command."""

import os
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from launcher.command import Command
from launcher.console import print_result, say
from launcher.doctor.checks import Device, Finding, Question
from launcher.doctor.endpoint_text import split_endpoint
from launcher.doctor.running import run_checks, verdicts
from launcher.doctor.table import CHECKS, Check
from launcher.doctor.text import as_json, as_text
from launcher.ranks.report import print_error, stop_on_signals
from launcher.settings.flags import convert_flags
from launcher.settings.schema import nearest, setting, settings_of
from parallel.environment import Environment
from parallel.errors import RefusedError

# Set by torchrun for each of its processes; one doctor is enough.
_TORCHRUN = "TORCHELASTIC_RUN_ID"


@dataclass(frozen=True, slots=True, kw_only=True)
class DoctorOptions:
    ranks: int | None = setting(
        "ranks that are to run on this host (default: one a GPU, or 2 without any)", default=None, low=1, high=256
    )
    endpoint: str | None = setting(
        "HOST:PORT where ranks of several hosts are to meet: looked up and connected to", default=None
    )
    device: Device = setting("what ranks are to compute on", default="auto")
    only: str | None = setting(
        f"checks to run, by name, with commas between: {', '.join(CHECKS)} (default: all)", default=None
    )
    json: bool = setting("print one JSON object", default=False)


def _doctor(words: Sequence[str], flags: Mapping[str, str], env: Environment, _arguments: Sequence[str]) -> int:
    started = time.monotonic()
    options = DoctorOptions(**convert_flags("doctor", settings_of(DoctorOptions), flags))
    if len(words) > 1:
        raise RefusedError(f"doctor wants one folder, CKPT_DIR, or none, and was given {len(words)}")
    if _TORCHRUN in os.environ or env.world_size > 1:
        raise RefusedError("doctor runs in one process; start it without torchrun")
    if options.endpoint is not None:
        split_endpoint(options.endpoint)
    # The folder is not looked at here: it may be of a file system that does not answer.
    folder = words[0] if words else None
    question = Question(folder=folder, ranks=options.ranks, endpoint=options.endpoint, device=options.device)
    checks = chosen(options.only)
    stop_on_signals()
    findings = run_checks(checks, question, lambda names: say(f"waiting for {', '.join(names)}"))
    seconds = time.monotonic() - started
    print_result(as_json(findings, seconds) if options.json else as_text(findings, seconds, _terminal_width()))
    return _verdict(findings)


def _terminal_width() -> int | None:
    """None where the report goes to a file or another program, for which lines stay whole."""
    return shutil.get_terminal_size().columns if sys.stdout is not None and sys.stdout.isatty() else None


def chosen(only: str | None) -> list[Check]:
    """The checks to run, in their own order. RefusedError for a name that is none."""
    if only is None:
        return list(CHECKS.values())
    names = [name.strip() for name in only.split(",") if name.strip()]
    for name in names:
        if name not in CHECKS:
            raise RefusedError(f"--only: '{name}' is not a check of doctor{nearest(name, CHECKS)}")
    if not names:
        raise RefusedError(f"--only is {only!r}; wanted names of checks: {', '.join(CHECKS)}")
    return [check for name, check in CHECKS.items() if name in names]


def _verdict(findings: Sequence[Finding]) -> int:
    found = list(dict.fromkeys(finding.name for finding in verdicts(findings, "bad")))
    if not found:
        return 0
    print_error(f"doctor finds {len(found)} bad: {', '.join(found)}; what to do stands beside each in the report")
    return RefusedError.exit_code


DOCTOR = Command(
    "shardrun doctor [CKPT_DIR] [--ranks N] [--endpoint HOST:PORT]",
    "looks at devices, memory, network and disk within 30 seconds, and tells what to do",
    lambda: settings_of(DoctorOptions),
    _doctor,
)
