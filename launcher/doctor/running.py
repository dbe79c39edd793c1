"""Runs the checks side by side, each in a process of its own under its own limit, and waits for none that hangs.

A process that is stuck in the kernel (a driver, a network file system) does not even end when it is killed: it is
killed and left alone.
"""

import contextlib
import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace

from launcher.doctor.checks import Attempt, Finding, Question, Said, bad, from_message, unknown
from launcher.doctor.mailbox import Mailbox
from launcher.doctor.processes import bound_to_us, own_command, own_environment
from launcher.doctor.table import TOTAL_S, Check

_POLL_S = 0.03
_TELL_S = 5.0
_GRACE_S = 0.5


@dataclass(slots=True)
class _Running:
    """A check at work, and what it has said so far."""

    check: Check
    process: "subprocess.Popen[bytes]"
    deadline: float
    findings: list[Finding] = field(default_factory=list)
    attempt: Attempt | None = None
    over: bool = False

    def hear(self, said: Said) -> None:
        if isinstance(said, Attempt):
            self.attempt = said
        else:
            self.findings.append(said)
            self.attempt = None

    def end(self, reason: str) -> None:
        """Kill whatever is left of it. `reason`: why it is over before it said all; '' where it did."""
        if reason:
            self.hear(unfinished(self.check, self.attempt, reason))
        self.over = True
        # The whole group: what the check itself started, such as a driver's tool.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.poll()


def run_checks(
    checks: Sequence[Check], question: Question, tell: Callable[[list[str]], None], total_s: float = TOTAL_S
) -> list[Finding]:
    """What they find, in the order of `checks`. `tell` is given the names of those that others wait for."""
    mailbox = Mailbox()
    started = time.monotonic()
    failed: list[Finding] = []
    running: dict[str, _Running] = {}
    try:
        for check in checks:
            try:
                process = _start(check, question, mailbox.slot)
            except OSError as error:
                failed.append(_not_started(check, error))
                continue
            running[check.name] = _Running(check, process, started + min(check.limit_s, total_s))
        _follow(running, mailbox, tell)
    finally:
        _stop([each for each in running.values() if not each.over])
        mailbox.close()
    return failed + [finding for each in running.values() for finding in each.findings]


def _start(check: Check, question: Question, slot: int) -> "subprocess.Popen[bytes]":
    return subprocess.Popen(
        own_command("one_check", check.name, json.dumps(asdict(question))),
        env=own_environment(os.environ),
        stdin=subprocess.DEVNULL,
        stdout=slot,
        stderr=subprocess.DEVNULL,
        process_group=0,
        preexec_fn=bound_to_us(),
    )


def _not_started(check: Check, error: OSError) -> Finding:
    return bad(
        check.name,
        f"the check could not be started: {error.strerror}",
        "this machine starts no more processes: raise `ulimit -u` and `ulimit -n`, or end what is not needed",
    )


def _follow(running: dict[str, _Running], mailbox: Mailbox, tell: Callable[[list[str]], None]) -> None:
    next_telling = time.monotonic() + _TELL_S
    while busy := [each for each in running.values() if not each.over]:
        # Who has ended is looked at first: what it said last is in the mailbox by then.
        ended = [(each, code) for each in busy if (code := each.process.poll()) is not None]
        now = time.monotonic()
        _deliver(running, mailbox, 0.0 if ended else _POLL_S)
        for each, code in ended:
            each.end(_reason(code))
        for each in busy:
            if not each.over and now >= each.deadline:
                each.end(f"no answer within {each.check.limit_s:g} s")
        if now >= next_telling:
            tell([each.check.name for each in busy if not each.over])
            next_telling = now + _TELL_S


def _stop(busy: Sequence[_Running]) -> None:
    """End the checks that a signal interrupts: asked first, so that they take their folders along."""
    for each in busy:
        with contextlib.suppress(ProcessLookupError):
            each.process.terminate()
    until = time.monotonic() + _GRACE_S
    while any(each.process.poll() is None for each in busy) and time.monotonic() < until:
        time.sleep(_POLL_S)
    for each in busy:
        each.end("")


def _deliver(running: dict[str, _Running], mailbox: Mailbox, wait_s: float) -> None:
    messages = mailbox.receive(wait_s)
    while messages:
        for sender, content in messages:
            if sender in running:
                running[sender].hear(from_message(content))
        messages = mailbox.receive(0.0)


def _reason(code: int) -> str:
    """Why a check that ended is unfinished; '' where it is not."""
    if code < 0:
        return f"killed by {signal.Signals(-code).name}"
    return "" if code == 0 else f"ended with exit code {code}"


def unfinished(check: Check, attempt: Attempt | None, reason: str) -> Finding:
    """What is said of a check that did not come to its end."""
    if attempt is None:
        return unknown(check.name, reason, "this machine may be overloaded: try again, alone with --only")
    return replace(attempt.finding, found=f"{attempt.finding.found}: {reason}")


def verdicts(findings: Iterable[Finding], verdict: str) -> list[Finding]:
    return [finding for finding in findings if finding.verdict == verdict]
