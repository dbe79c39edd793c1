"""Many prompts from a file to a file: a run that is killed is gone on with, and nothing is lost or done twice."""

import contextlib
import json
import os
import random
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from tests.end_to_end.command import (
    WHILE_LOADING_S,
    Outcome,
    Running,
    Said,
    assert_done,
    assert_one_message,
    assert_refused,
    assert_says,
    complete,
    run,
    snapshot,
)

DEMO = Path(__file__).resolve().parents[2] / "configs" / "demo"
WORDS = ["the", "old", "boat", "lay", "on", "sand", "and", "waited", "for", "a", "small", "grey", "cat", "by", "doors"]
# Threads that spin while they wait for each other take twenty times as long on a busy machine.
PATIENT = {"OMP_WAIT_POLICY": "PASSIVE"}


def write_prompts(folder: Path, count: int, bad: Sequence[int] = ()) -> list[str]:
    """prompts.jsonl, of one to forty words a prompt; the lines `bad` are no JSON."""
    draw = random.Random(count)
    prompts = [" ".join(draw.choices(WORDS, k=draw.choice([1, 2, 4, 8, 16, 40]))) for _ in range(count)]
    lines = ["no JSON" if index in bad else json.dumps({"prompt": prompt}) for index, prompt in enumerate(prompts)]
    (folder / "prompts.jsonl").write_text("".join(f"{line}\n" for line in lines))
    return prompts


def flags(output: str, *more: str, ranks: int = 1) -> list[str]:
    settings = {
        "--ckpt_dir": str(DEMO),
        "--prompts": "@prompts.jsonl",
        "--output": output,
        "--max_seq_len": "96",
        "--max_gen_len": "4",
        "--max_batch_size": "32",
        "--temperature": "0.8",
        "--device": "cpu",
        "--nproc_per_node": str(ranks),
    }
    given = set(more)
    return [
        "complete",
        *(word for name, value in settings.items() if name not in given for word in (name, value)),
        *more,
    ]


def answers_in(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


def wait_for_answers(running: Running, path: Path, count: int, limit_s: float = 60.0) -> None:
    deadline = time.monotonic() + limit_s
    while answers_in(path) < count:
        assert running.process.poll() is None, f"ended with {running.process.returncode}:\n{running.err}"
        assert time.monotonic() < deadline, f"{answers_in(path)} of {count} answers within {limit_s} s:\n{running.err}"
        time.sleep(0.002)


def kill_at(case: Path, arguments: Sequence[str], count: int, rank: int | None = None) -> Outcome:
    """Start a run, and kill it (or one of its ranks) when out.jsonl has so many answers."""
    with Running(arguments, case, env=PATIENT) as running:
        wait_for_answers(running, case / "out.jsonl", count)
        os.kill(running.process.pid if rank is None else running.ranks()[rank], signal.SIGKILL)
        outcome = running.end(grace_s=2.0)
    assert outcome.left == []
    return outcome


def assert_in_order(case: Path, prompts: Sequence[str]) -> int:
    """The file holds the answers to the first requests, whole and in order, but for a part of a line at its end."""
    *lines, _ = (case / "out.jsonl").read_bytes().split(b"\n")
    found = [json.loads(line) for line in lines]
    assert [(answer["index"], answer["prompt"]) for answer in found] == list(enumerate(prompts[: len(found)]))
    return len(found)


def kill_twice_and_compare(case: Path, count: int) -> None:
    prompts = write_prompts(case, count)
    assert_done(run(flags("whole.jsonl", "--logprobs", ranks=2), case))
    arguments = flags("out.jsonl", "--logprobs", ranks=2)
    killed = kill_at(case, arguments, count // 5)
    assert killed.code == -signal.SIGKILL
    first = assert_in_order(case, prompts)
    killed = kill_at(case, [*arguments, "--resume"], count * 3 // 5, rank=0)
    assert killed.code == 3, killed.err
    assert_one_message(killed, alone=False)
    assert_says(killed.errors[0], ["rank 0", "killed by SIGKILL"])
    assert_says(killed.err, [f"out.jsonl holds {first} of {count} answers already"])
    second = assert_in_order(case, prompts)
    # Both kills met it at work.
    assert 0 < first < second < count
    assert_done(run([*arguments, "--resume"], case), [f"out.jsonl holds {second} of {count} answers already"])
    assert assert_in_order(case, prompts) == count
    assert (case / "out.jsonl").read_bytes() == (case / "whole.jsonl").read_bytes()
    left = {"out.jsonl", "prompts.jsonl", "tmp", "whole.jsonl"}
    assert {path.name for path in case.iterdir()} == left


def test_C76_a_thousand_prompts_of_mixed_lengths_are_answered_once_and_in_order_though_the_run_is_killed_twice(
    case: Path,
) -> None:
    kill_twice_and_compare(case, 1000)


def test_a_run_that_is_gone_on_with_on_another_number_of_ranks_gives_the_same_tokens_in_float32(case: Path) -> None:
    write_prompts(case, 120)
    in_float32 = ("--dtype", "float32", "--max_batch_size", "8")
    assert_done(run(flags("whole.jsonl", *in_float32), case, env=PATIENT))
    kill_at(case, flags("out.jsonl", *in_float32, ranks=2), 30)
    outcome = run(flags("out.jsonl", *in_float32, "--resume"), case, env=PATIENT)
    assert_done(outcome, ["out.jsonl was begun with ranks 2, and this run has 1"])
    assert (case / "out.jsonl").read_bytes() == (case / "whole.jsonl").read_bytes()


def test_a_run_that_is_told_to_stop_leaves_whole_lines(case: Path) -> None:
    prompts = write_prompts(case, 400)
    with Running(flags("out.jsonl", "--max_batch_size", "8"), case, env=PATIENT) as running:
        wait_for_answers(running, case / "out.jsonl", 20)
        os.kill(running.process.pid, signal.SIGTERM)
        outcome = running.end()
    assert outcome.code == 128 + signal.SIGTERM, outcome.err
    assert 20 <= assert_in_order(case, prompts) < 400
    assert (case / "out.jsonl").read_bytes().endswith(b"}\n")


def test_a_whole_file_is_left_as_it_is(case: Path) -> None:
    write_prompts(case, 3)
    assert_done(run(flags("out.jsonl"), case, env=PATIENT))
    before = snapshot(case)
    outcome = run(flags("out.jsonl", "--resume"), case, env=PATIENT)
    assert_done(outcome, ["out.jsonl holds all of 3 answers already"])
    assert outcome.out == ""
    assert "loaded " not in outcome.err
    assert snapshot(case) == before


def test_the_second_of_two_runs_on_one_file_is_refused(case: Path) -> None:
    write_prompts(case, 400)
    with Running(flags("out.jsonl", "--max_gen_len", "50"), case, env=PATIENT) as running:
        wait_for_answers(running, case / "out.jsonl", 1)
        outcome = run(flags("out.jsonl", "--resume"), case, env=PATIENT)
        assert running.process.poll() is None, "the first run has to be at work still"
    assert_refused(outcome, ["--output out.jsonl", "is being written by another run"], WHILE_LOADING_S)


def _holds_something(case: Path) -> None:
    (case / "out.jsonl").write_text("mine")


def _folder(case: Path) -> None:
    (case / "out.jsonl").mkdir()


def _nothing(_case: Path) -> None:
    pass


REFUSED = {
    "holds_something": (_holds_something, flags("out.jsonl"), ["--output out.jsonl", "holds something", "--resume"]),
    "a_folder": (_folder, flags("out.jsonl"), ["--output out.jsonl", "is a folder"]),
    "a_folder_that_is_not_there": (_nothing, flags("no/out.jsonl"), ["--output no/out.jsonl", "folder no does not"]),
    "resume_without_output": (_nothing, complete(DEMO, "--resume"), ["--resume", "--output"]),
}


@pytest.mark.parametrize(("make", "arguments", "says"), REFUSED.values(), ids=REFUSED)
def test_an_output_that_cannot_be_is_refused_and_left_as_it_is(
    make: Callable[[Path], None], arguments: list[str], says: list[Said], case: Path
) -> None:
    write_prompts(case, 3)
    make(case)
    before = snapshot(case)
    assert_refused(run(arguments, case), says)
    assert snapshot(case) == before
    if "--nproc_per_node" in arguments:
        in_two_ranks = [*arguments[: arguments.index("--nproc_per_node")], "--nproc_per_node", "2"]
        assert_refused(run(in_two_ranks, case), says)
        assert snapshot(case) == before


def test_a_file_that_is_not_of_answers_is_refused_before_the_model_is_loaded(case: Path) -> None:
    write_prompts(case, 3)
    _holds_something(case)
    before = snapshot(case)
    outcome = run(flags("out.jsonl", "--resume"), case)
    assert_refused(outcome, ["--output out.jsonl", "line 1 is no answer"], WHILE_LOADING_S)
    assert "loaded " not in outcome.err
    assert snapshot(case) == before


def test_to_go_on_with_other_settings_or_prompts_is_refused_by_their_name(case: Path) -> None:
    write_prompts(case, 200)
    kill_at(case, flags("out.jsonl"), 20)
    before = snapshot(case)
    outcome = run(flags("out.jsonl", "--resume", "--temperature", "0.7"), case)
    assert_refused(outcome, ["--output out.jsonl", "was begun with temperature 0.8", "has 0.7"], WHILE_LOADING_S)
    assert snapshot(case) == before
    lines = (case / "prompts.jsonl").read_text().splitlines()
    (case / "prompts.jsonl").write_text("\n".join([lines[0], '{"prompt": "another"}', *lines[2:]]))
    outcome = run(flags("out.jsonl", "--resume"), case)
    assert_refused(outcome, ["--output out.jsonl", "line 2 answers another request"], WHILE_LOADING_S)
    assert (case / "out.jsonl").stat().st_size > 0


def test_C76_what_a_full_disk_does_not_take_is_made_up_for_later(case: Path) -> None:
    """A limit to the size of files stands in for the end of a disk."""
    prompts = write_prompts(case, 100)
    assert_done(run(flags("whole.jsonl", ranks=2), case))
    limit = (case / "whole.jsonl").stat().st_size * 2 // 3
    arguments = flags("out.jsonl", ranks=2)
    with Running(arguments, case, wrapper=["prlimit", f"--fsize={limit}"]) as running:
        outcome = running.end()
    assert (outcome.code, outcome.left) == (2, []), outcome.err
    assert_one_message(outcome, alone=False)
    assert_says(
        outcome.errors[0], ["error: --output out.jsonl: the answers cannot be written: File too large", "--resume"]
    )
    assert 0 < assert_in_order(case, prompts) < 100
    assert (case / "out.jsonl").read_bytes().endswith(b"}\n")
    assert_done(run([*arguments, "--resume"], case))
    assert (case / "out.jsonl").read_bytes() == (case / "whole.jsonl").read_bytes()


def test_bad_lines_are_skipped_where_that_is_asked_and_told_once_by_their_place(case: Path) -> None:
    prompts = write_prompts(case, 6, bad=(1, 4))
    places = [f"prompts.jsonl:{index + 1} (prompt {index}): is not valid JSON" for index in (1, 4)]
    refused = run(flags("out.jsonl", ranks=2), case)
    assert_refused(refused, [places[0]])
    skipping = ("--bad_lines", "skip")
    outcome = run(flags("out.jsonl", *skipping, ranks=2), case)
    assert_done(outcome, [f"skipped: {place}" for place in places])
    assert outcome.err.count("skipped: ") == 2
    answers = [json.loads(line) for line in (case / "out.jsonl").read_text().splitlines()]
    assert [answer["index"] for answer in answers] == list(range(6))
    for answer, prompt in zip(answers, prompts, strict=True):
        bad = answer["index"] in (1, 4)
        assert answer["prompt"] == ("no JSON" if bad else prompt)
        assert ("error" in answer, "generation" in answer) == (bad, not bad)
    as_text = run([*complete(DEMO, *skipping, "--prompts", "@prompts.jsonl", "--max_seq_len", "96")], case)
    assert_done(as_text, [f"skipped: {place}" for place in places])
    assert as_text.out.strip() != ""
    assert "no JSON" not in as_text.out


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_run_whose_reader_has_gone_ends_without_a_word(ranks: int, case: Path) -> None:
    """As that of `shardrun ... --json | head -n 1`, which a shell shows as stopped by SIGPIPE."""
    write_prompts(case, 400)
    arguments = complete(
        DEMO, "--json", "--prompts", "@prompts.jsonl", "--max_seq_len", "96", "--nproc_per_node", str(ranks)
    )
    pipe = '"$@" | head -n 1; exit ${PIPESTATUS[0]}'
    with Running(arguments, case, env=PATIENT, wrapper=["bash", "-c", pipe, "bash"]) as running:
        outcome = running.end()
    assert (outcome.code, outcome.left) == (128 + signal.SIGPIPE, []), outcome.err
    assert [json.loads(line)["index"] for line in outcome.out.splitlines()] == [0]
    assert outcome.errors == []
    assert "Traceback" not in outcome.err


@pytest.mark.drill
def test_a_run_that_is_killed_many_times_at_any_moment_ends_with_the_same_bytes(case: Path) -> None:
    write_prompts(case, 300)
    several = ("--num_return_sequences", "2", "--stop", '["the"]', "--dtype", "bfloat16", "--logprobs")
    assert_done(run(flags("whole.jsonl", *several, ranks=2), case))
    arguments, draw = flags("out.jsonl", *several, "--resume", ranks=2), random.Random(11)
    for _ in range(20):
        with Running(arguments, case) as running:
            time.sleep(draw.uniform(1.0, 6.0))
            victims = [running.process.pid, *running.ranks().values()]
            with contextlib.suppress(ProcessLookupError):
                os.kill(draw.choice(victims), signal.SIGKILL)
            running.end(grace_s=2.0)
    assert_done(run(arguments, case))
    assert (case / "out.jsonl").read_bytes() == (case / "whole.jsonl").read_bytes()
    assert not (case / "out.jsonl.run").exists()
