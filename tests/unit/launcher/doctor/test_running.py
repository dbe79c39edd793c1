"""What carries findings from their processes to the report: the mailbox, questions with a limit, and the texts."""

import json
import os
import subprocess
import sys
import time

import pytest

from launcher.amounts import human
from launcher.doctor.asking import NoAnswerError, ask, within
from launcher.doctor.checks import Finding, as_message, bad, from_message, good, note, trying, unknown
from launcher.doctor.command import chosen
from launcher.doctor.mailbox import Mailbox, post
from launcher.doctor.running import unfinished
from launcher.doctor.table import CHECKS, TOTAL_S, Check
from launcher.doctor.text import as_json, as_text
from parallel.errors import RefusedError

_SENDER = """
import sys
from launcher.doctor.mailbox import own_slot, post
slot = own_slot()
print("a library speaks")
for number in range(200):
    post(slot, sys.argv[1], {"number": number, "filling": "x" * 500})
"""


def test_messages_of_several_processes_arrive_whole_and_in_order() -> None:
    mailbox = Mailbox()
    senders = [
        subprocess.Popen([sys.executable, "-c", _SENDER, name], stdout=mailbox.slot, stderr=subprocess.DEVNULL)
        for name in ("one", "two", "three")
    ]
    received: dict[str, list[int]] = {}
    deadline = time.monotonic() + 30
    while sum(map(len, received.values())) < 600 and time.monotonic() < deadline:
        for sender, content in mailbox.receive(0.1):
            received.setdefault(sender, []).append(content["number"])
    assert received == {name: list(range(200)) for name in ("one", "two", "three")}
    assert [sender.wait() for sender in senders] == [0, 0, 0]
    mailbox.close()


def test_a_message_too_long_to_arrive_whole_is_cut_and_junk_is_passed_over() -> None:
    mailbox = Mailbox()
    os.write(mailbox.slot, b'junk\n[1, 2]\n"x"\n')
    post(mailbox.slot, "disk", as_message(bad("disk", "é" * 10_000, "do this")))
    ((sender, content),) = mailbox.receive(1.0)
    assert sender == "disk"
    assert content["found"].endswith("...")
    assert content["remedy"] == "do this"
    assert mailbox.receive(0.0) == []
    mailbox.close()


def test_findings_and_attempts_survive_the_way() -> None:
    for said in (good("torch", "2.13"), trying("disk", "reading", "copy it")):
        assert from_message(json.loads(json.dumps(as_message(said)))) == said


def test_a_program_that_hangs_is_given_up_with_what_it_had_said() -> None:
    asked = ask(["sh", "-c", "echo half; sleep 1000"], 0.5)
    assert asked is not None
    started = time.monotonic()
    answer = asked.answer()
    assert (answer.hangs, answer.first_line) == (True, "half")
    assert time.monotonic() - started < 5.0
    assert ask(["no-such-program-here"], 1.0) is None
    asked.process.kill()
    asked.process.wait()
    assert asked.process.stdout is not None
    asked.process.stdout.close()


def test_a_call_that_hangs_is_given_up_and_an_error_is_passed_on() -> None:
    assert within(5.0, lambda: 7) == 7
    with pytest.raises(NoAnswerError):
        within(0.05, lambda: time.sleep(1.0))
    with pytest.raises(ZeroDivisionError):
        within(5.0, lambda: 1 // 0)


def test_a_check_that_does_not_end_says_what_it_was_doing() -> None:
    check = Check("disk", 12.0)
    finding = unfinished(check, trying("disk", "reading shard 3", "copy it"), "no answer within 12 s")
    assert finding == bad("disk", "reading shard 3: no answer within 12 s", "copy it")
    assert unfinished(check, None, "killed by SIGKILL").verdict == "unknown"


def test_every_check_ends_in_time_for_the_whole_to_end_within_half_a_minute() -> None:
    assert max(check.limit_s for check in CHECKS.values()) <= TOTAL_S <= 26.0


FINDINGS = [
    note("time server", "none"),
    good("torch", "2.13"),
    bad("disk", "slow\x1b[31m", "copy it"),
    unknown("x", "y"),
]


def test_what_is_bad_stands_first_and_its_remedy_below_it() -> None:
    lines = as_text(FINDINGS, 3.21).splitlines()
    assert [line.split()[0] for line in lines] == ["bad", "->", "unknown", "good", "note", "4"]
    assert lines[0] == "bad      disk         slow\\x1b[31m"
    assert lines[-1] == "4 lines in 3.2 s: 1 bad, 1 unknown, 1 good"


def test_lines_are_folded_for_a_terminal_alone() -> None:
    long = [Finding(name="x", verdict="good", found="word " * 100)]
    assert len(as_text(long, 1.0).splitlines()) == 2
    assert max(map(len, as_text(long, 1.0, 80).splitlines())) <= 80


def test_the_json_object_has_the_verdict_and_every_finding() -> None:
    report = json.loads(as_json(FINDINGS, 3.21))
    assert (report["verdict"], report["bad"], report["good"], report["unknown"], report["note"]) == ("bad", 1, 1, 1, 1)
    assert report["findings"][0] == {"name": "disk", "verdict": "bad", "found": "slow\x1b[31m", "remedy": "copy it"}
    assert json.loads(as_json(FINDINGS[:2], 1.0))["verdict"] == "good"


def test_checks_are_chosen_by_name() -> None:
    assert [check.name for check in chosen("ports, names")] == ["names", "ports"]
    assert len(chosen(None)) == len(CHECKS)
    with pytest.raises(RefusedError, match="'port' is not a check of doctor; did you mean 'ports'"):
        chosen("port")
    with pytest.raises(RefusedError, match="wanted names of checks"):
        chosen(" , ")


@pytest.mark.parametrize(
    ("nbytes", "text"), [(0, "0 B"), (1500, "1.5 kB"), (13_476_000_000, "13.5 GB"), (999_000_000, "999 MB")]
)
def test_bytes_are_told_in_three_figures(nbytes: float, text: str) -> None:
    assert human(nbytes) == text
