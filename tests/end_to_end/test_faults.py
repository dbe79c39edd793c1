"""Failures while running (FAULTS C66 to C71, C75, C77): each made on purpose, and what the user reads of it."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.end_to_end.command import CopyOf, Running, Said, assert_done, assert_refused, complete, run
from tests.end_to_end.drills import ENDED_S, Healthy, assert_failed, drill, fault_comes, two_ranks, untouched

WHO = "rank 1 (pid, host)"
KILLED = f"{WHO} was killed by SIGKILL while"
MEMORY = ("by somebody, or because the host's memory ran out (", "GB of the host's memory were free): see dmesg")
RAISED = "it was asked to (--inject raise)"
# Of the fault, what must be said.
FAILURES: dict[str, tuple[str, Sequence[str]]] = {
    "C66_raise_while_loading": (
        "raise:rank=1,phase=loading,step=3",
        (f"{WHO} failed while loading (weight 3 of 21): {RAISED}",),
    ),
    "C66_raise_while_prefilling": (
        "raise:rank=0,phase=prefilling",
        ("rank 0 (pid, host) failed while prefilling (", f" tokens): {RAISED}"),
    ),
    "C66_raise_while_decoding": ("raise:rank=1,step=5", (f"{WHO} failed while decoding (step 5): {RAISED}",)),
    "C67_kill_while_meeting": ("kill:rank=1,phase=meeting", (f"{KILLED} meeting the other ranks: ", *MEMORY)),
    "C67_kill_while_loading": (
        "kill:rank=1,phase=loading,step=3",
        (f"{KILLED} loading (weight 3 of 21): ", *MEMORY),
    ),
    "C68_kill_while_decoding": ("kill:rank=1,step=5", (f"{KILLED} decoding (step 5): ", *MEMORY)),
    "C68_kill_of_rank_0_while_decoding": (
        "kill:rank=0,step=5",
        ("rank 0 (pid, host) was killed by SIGKILL while decoding (step 5): ", *MEMORY),
    ),
    "C69_exit_0_while_loading": (
        "exit:rank=1,phase=loading",
        (f"{WHO} left early (exit 0) while loading (weight 1 of 21)",),
    ),
    "C69_exit_0_while_decoding": ("exit:rank=1,step=5", (f"{WHO} left early (exit 0) while decoding (step 5)",)),
    "C75_out_of_memory": (
        "oom:rank=1,step=5",
        (
            f"{WHO} is out of memory while decoding (step 5): ",
            "you tried to allocate 72057594037927936 bytes",
            "fewer sequences (--max_batch_size), a shorter --max_seq_len",
        ),
    ),
    "C77_not_a_number": (
        "nan:rank=1,step=3",
        (
            "the logits of prompt 0 at step 3 are not finite (nan from rank 1, whose weights are not finite)",
            "they were when loaded: start again",
        ),
    ),
}
# The others go ways through the program that these go too.
ALWAYS = {
    "C66_raise_while_loading",
    "C67_kill_while_loading",
    "C69_exit_0_while_loading",
    "C75_out_of_memory",
    "C77_not_a_number",
}


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        pytest.param(*case, id=name, marks=() if name in ALWAYS else pytest.mark.drill)
        for name, case in FAILURES.items()
    ],
)
def test_a_rank_that_fails_is_named_with_its_place_and_its_message(
    fault: str, says: Sequence[str], healthy: Healthy, case: Path
) -> None:
    with untouched(case):
        found = drill(two_ranks(healthy), case, fault)
    assert_failed(found, *says)


@pytest.mark.drill
def test_C77_not_a_number_is_told_where_tokens_are_drawn_too(healthy: Healthy, case: Path) -> None:
    found = drill(two_ranks(healthy), case, "nan:rank=0,step=3", "--temperature", "1")
    assert_failed(found, "the logits of prompt 0 at step 3 are not finite (nan from rank 0")


@pytest.mark.drill
def test_C66_a_rank_that_fails_while_loading_does_not_wait_until_the_others_have_loaded(
    healthy: Healthy, case: Path
) -> None:
    fault = "raise:rank=1,phase=loading,step=3;slow:rank=0,phase=loading,seconds=2"
    found = drill(two_ranks(healthy), case, fault)
    assert_failed(found, f"{WHO} failed while loading (weight 3 of 21): {RAISED}")


HEARTBEAT_S = 2.0
SILENT = ("no sign of life for 2 s; rank 0 waits for it while", "--heartbeat_s says how long such silence may last")
# The collective, or the watch a second later: on a busy machine a rank may be that slow in saying so.
GAVE_UP = ("; the others waited for it until they gave up: rank ", ": no sign of life for 3 s")
STOPPED = "stopped by a signal (SIGSTOP or Ctrl-Z)"
# Of the fault: by whom it is found, and what must be said.
HANGS: dict[str, tuple[str, str, Sequence[Said]]] = {
    "C70_hang_while_meeting": (
        "hang:rank=1,phase=meeting",
        "--heartbeat_s",
        (f"{WHO} hangs while meeting the other ranks, sleeping: ", *SILENT, "(waiting for the other ranks to come)"),
    ),
    "C70_hang_while_making_the_group": (
        "hang:rank=1,phase=making",
        "--heartbeat_s",
        (f"{WHO} hangs while making the process group, sleeping: ", *SILENT),
    ),
    "C70_hang_while_loading": (
        "hang:rank=1,phase=loading,step=3",
        "--heartbeat_s",
        (f"{WHO} hangs while loading (weight 3 of 21), sleeping: ", *SILENT, "(waiting for word from rank 1)"),
    ),
    "C70_hang_while_decoding": (
        "hang:rank=1,step=5",
        "--heartbeat_s",
        (f"{WHO} hangs while decoding (step 5), sleeping: ", *SILENT, "decoding (step 5, in all-"),
    ),
    "C70_hang_that_a_collective_gives_up": (
        "hang:rank=1,step=5",
        "--timeout_s",
        (f"{WHO} hangs while decoding (step 5), sleeping", GAVE_UP, "decoding (step 5, in all-"),
    ),
    "C70_hang_that_the_meeting_gives_up": (
        "hang:rank=1,phase=making",
        "--timeout_s",
        (f"{WHO} hangs while making the process group, sleeping", GAVE_UP),
    ),
    "C70_hang_that_no_collective_waits_for": (
        "hang:rank=1,phase=loading,step=3",
        "--timeout_s",
        (f"{WHO} hangs while loading (weight 3 of 21), sleeping: no sign of life for 3 s; rank 0 waits for it",),
    ),
    "C71_stop_while_decoding": (
        "stop:rank=1,step=5",
        "--heartbeat_s",
        (f"{WHO} hangs while decoding (step 5), {STOPPED}: ", *SILENT),
    ),
    "C71_stop_of_rank_0_that_a_collective_gives_up": (
        "stop:rank=0,step=5",
        "--timeout_s",
        (f"rank 0 (pid, host) hangs while decoding (step 5), {STOPPED}", GAVE_UP),
    ),
}
ALWAYS_HANGS = {"C70_hang_while_decoding", "C71_stop_while_decoding"}


@pytest.mark.parametrize(
    ("fault", "found_by", "says"),
    [
        pytest.param(*case, id=name, marks=() if name in ALWAYS_HANGS else pytest.mark.drill)
        for name, case in HANGS.items()
    ],
)
def test_a_rank_that_hangs_is_named_and_not_the_one_that_waits(
    fault: str, found_by: str, says: Sequence[Said], healthy: Healthy, case: Path
) -> None:
    with untouched(case):
        found = drill(two_ranks(healthy), case, fault, found_by, str(HEARTBEAT_S))
    assert_failed(found, *says, limit_s=HEARTBEAT_S + ENDED_S)


@pytest.mark.drill
def test_a_rank_that_hangs_for_less_than_the_heartbeat_is_waited_for(healthy: Healthy, case: Path) -> None:
    flags = ("--nproc_per_node", "2", "--max_gen_len", "4", "--heartbeat_s", "4", "--json")
    outcome = run(complete(two_ranks(healthy), "--inject", "hang:rank=1,step=2,seconds=1.5", *flags), case)
    assert_done(outcome, ["shardrun: rank 1: inject: hang comes now, while decoding (step 2)"])
    assert outcome.out.count("\n") == 1


def test_a_fault_that_never_comes_is_told_and_one_that_cannot_come_is_refused(healthy: Healthy, case: Path) -> None:
    flags = ("--nproc_per_node", "2")
    outcome = run(complete(two_ranks(healthy), "--inject", "kill:rank=1,step=500", *flags), case)
    never = "inject: kill:rank=1,phase=decoding,step=500 never came: the work was done before"
    assert_done(outcome, [f"shardrun: rank 1: note: {never}"])
    assert_refused(run(complete(two_ranks(healthy), "--inject", "kill:rank=2", *flags), case), ["rank 2", "has 2"])


def test_one_process_can_be_made_to_fail_too(copy_of: CopyOf, case: Path) -> None:
    copy_of(1)
    with Running(complete("ckpt", "--inject", "oom:step=2", "--max_gen_len", "4"), case) as running:
        fault_comes(running)
        outcome = running.end()
    assert (outcome.code, outcome.left) == (3, [])
    assert outcome.errors[0].startswith("shardrun: error: rank 0 is out of memory while decoding (step 2): ")
