"""Odd files and odd surroundings that users have met: each ends in a sentence, or does not matter."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from tests.checkpoints import SHARD
from tests.end_to_end.command import CopyOf, Running, assert_done, assert_refused, complete, run


def test_a_zip_that_two_readers_would_read_differently_is_refused(copy_of: CopyOf, case: Path) -> None:
    """Another archive in front: Python's zipfile skips it, torch reads it."""
    shard = copy_of() / SHARD.format(0)
    honest = shard.read_bytes()
    weights = torch.load(shard, weights_only=True)
    weights["output.weight"] = torch.zeros_like(weights["output.weight"])
    torch.save(weights, shard)
    forged, end = shard.read_bytes(), honest.rfind(b"PK\x05\x06")
    shard.write_bytes(forged[: forged.rfind(b"PK\x05\x06")] + honest)
    assert end > 0
    assert_refused(run(complete(), case), [SHARD.format(0), "bytes in front of its zip records"])


@pytest.mark.parametrize("protocol", [4, 5])
def test_a_pickle_that_torch_would_refuse_with_bad_advice_is_refused_with_good(
    protocol: int, copy_of: CopyOf, case: Path
) -> None:
    shard = copy_of() / SHARD.format(0)
    torch.save(torch.load(shard, weights_only=True), shard, pickle_protocol=protocol)
    assert_refused(run(complete(), case), [SHARD.format(0), f"protocol {protocol}", "save it again"])


def test_a_shard_with_a_date_for_a_number_is_named_at_once(copy_of: CopyOf, case: Path) -> None:
    folder = copy_of()
    shutil.copy(folder / SHARD.format(0), folder / "consolidated.20240101.pth")
    assert_refused(run(complete(), case), ["consolidated.20240101.pth", "move it away"])


def test_a_weight_of_another_dtype_in_one_shard_is_named(copy_of: CopyOf, case: Path) -> None:
    shard = copy_of(2) / SHARD.format(1)
    weights = torch.load(shard, weights_only=True)
    name = "layers.0.attention.wq.weight"
    weights[name] = weights[name].to(torch.bfloat16)
    torch.save(weights, shard)
    outcome = run(complete("ckpt", "--nproc_per_node", "2"), case)
    assert_refused(outcome, [SHARD.format(1), name, "bfloat16"])


def test_a_pipe_of_prompts_is_refused_and_not_waited_for(copy_of: CopyOf, case: Path) -> None:
    copy_of()
    os.mkfifo(case / "pipe.txt")
    assert_refused(run(complete("ckpt", "--prompts", "@pipe.txt"), case), ["pipe.txt", "is not a regular file"])


@pytest.mark.parametrize("ranks", ["1", "2"])
def test_a_log_folder_that_cannot_be_written_to_is_refused(ranks: str, copy_of: CopyOf, case: Path) -> None:
    copy_of(int(ranks))
    (case / "file").write_text("")
    outcome = run(complete("ckpt", "--nproc_per_node", ranks, "--log_dir", "file"), case)
    assert_refused(outcome, ["--log_dir file", "cannot be written to"])
    assert not list((case / "tmp").iterdir())


def test_results_are_utf_8_whatever_the_locale(copy_of: CopyOf, case: Path) -> None:
    copy_of()
    outcome = run(
        complete("ckpt", "--json", prompts='["日本"]'), case, env={"PYTHONIOENCODING": "latin-1", "LC_ALL": "C"}
    )
    assert_done(outcome)
    assert json.loads(outcome.out)["prompt"] == "日本"


def test_a_full_disk_behind_stdout_is_one_sentence(copy_of: CopyOf, case: Path) -> None:
    copy_of()
    command = [sys.executable, "-m", "launcher", *complete()]
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(command, cwd=case, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 2
    assert "shardrun: error: the results cannot be written to stdout: No space left on device" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_closed_stdout_is_one_sentence(copy_of: CopyOf, case: Path) -> None:
    copy_of(1)
    closing = ["sh", "-c", 'exec "$@" >&-', "sh"]
    with Running(complete("ckpt", "--max_gen_len", "2"), case, wrapper=closing) as running:
        outcome = running.end()
    assert_refused(outcome, ["stdout is closed"], 15.0)


def test_a_tokenizer_in_the_parent_folder_is_carried_along_by_reshard(copy_of: CopyOf, case: Path) -> None:
    """Meta's downloads have it there."""
    (case / "download").mkdir()
    folder = copy_of(name="download/7B")
    shutil.move(folder / "tokenizer.model", case / "download" / "tokenizer.model")
    (case / "elsewhere").mkdir()
    assert_done(run(["reshard", "download/7B", "elsewhere/two", "--mp", "2"], case))
    assert_done(run(complete("elsewhere/two", "--nproc_per_node", "2"), case))


def test_what_a_killed_reshard_left_behind_is_removed_by_the_next(copy_of: CopyOf, case: Path) -> None:
    copy_of()
    (case / ".two.partial-stale").mkdir()
    (case / ".two.partial-stale" / "consolidated.00.pth").write_text("half")
    assert_done(run(["reshard", "ckpt", "two", "--mp", "2"], case))
    assert sorted(path.name for path in case.iterdir()) == ["ckpt", "tmp", "two"]


def test_a_prompt_that_leaves_no_room_is_answered_with_nothing(copy_of: CopyOf, case: Path) -> None:
    copy_of()
    found = run(complete("ckpt", "--json", "--max_seq_len", "1", prompts='[""]'), case)
    assert_done(found)
    answer = json.loads(found.out)
    assert (answer["tokens"], answer["finish_reason"]) == ([], "length")


def test_a_run_that_is_to_survive_a_hang_up_does(copy_of: CopyOf, case: Path) -> None:
    """nohup, and a shell's background jobs, have the signal ignored."""
    copy_of()
    flags = complete("ckpt", "--max_seq_len", "400", "--max_gen_len", "300", "--eos_ids", "[]", "--stream")
    with Running(flags, case, wrapper=["nohup"]) as running:
        time.sleep(0.4)
        os.kill(running.process.pid, signal.SIGHUP)
        running.wait_for_output()
        os.kill(running.process.pid, signal.SIGHUP)
        outcome = running.end()
    assert outcome.code == 0, outcome.err


@pytest.mark.parametrize("after_s", [0.7, pytest.param(2.0, marks=pytest.mark.drill)])
def test_ctrl_c_reaches_all_ranks_and_one_speaks(after_s: float, copy_of: CopyOf, case: Path) -> None:
    """A terminal signals the whole group, not only the launcher."""
    copy_of(2)
    flags = ["--max_seq_len", "20000", "--max_gen_len", "19000", "--eos_ids", "[]", "--nproc_per_node", "2"]
    with Running(complete("ckpt", *flags), case) as running:
        time.sleep(after_s)
        os.killpg(running.process.pid, signal.SIGINT)
        outcome = running.end()
    assert outcome.code == 128 + signal.SIGINT
    assert outcome.err.count("stopped by SIGINT") == 1
    assert "Traceback" not in outcome.err
    assert outcome.left == []


def hand_started(rank: int, port: int, folder: Path, *flags: str) -> Running:
    place = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    place |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    own = folder / f"rank{rank}"
    own.mkdir()
    return Running(complete(folder / "ckpt", *flags), own, env=place)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_files_of_prompts_that_differ_between_hosts_are_refused_on_both(copy_of: CopyOf, case: Path) -> None:
    copy_of(2)
    port, names = free_port(), []
    for rank, text in enumerate(("the old boat\n", "the old boat\nand two more\n")):
        (case / f"prompts{rank}.txt").write_text(text)
        names.append(f"@{case / f'prompts{rank}.txt'}")
    with (
        hand_started(0, port, case, "--prompts", names[0]) as zero,
        hand_started(1, port, case, "--prompts", names[1]) as one,
    ):
        ends = [zero.end(), one.end()]
    assert [end.code for end in ends] == [2, 2]
    assert "the ranks disagree on the number of prompts" in ends[0].err
    assert [len(end.errors) for end in ends] == [1, 0]
    assert all("Traceback" not in end.err for end in ends)


def test_when_rank_0_is_killed_the_other_ends_with_one_sentence(copy_of: CopyOf, case: Path) -> None:
    copy_of(2)
    port = free_port()
    flags = ["--max_seq_len", "20000", "--max_gen_len", "19000", "--eos_ids", "[]", "--stream"]
    with hand_started(0, port, case, *flags) as zero, hand_started(1, port, case, *flags) as one:
        zero.wait_for_output()
        os.kill(zero.process.pid, signal.SIGKILL)
        outcome = one.end()
    assert outcome.code == 3, outcome.err
    assert len(outcome.errors) == 1
    assert "rank 1 lost contact with another rank" in outcome.errors[0]
    assert "Traceback" not in outcome.err
