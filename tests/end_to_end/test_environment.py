"""Faults of the environment and of the rendezvous (FAULTS B52 to B65): real variables, real processes, 127.0.0.1."""

import json
import os
import shutil
import socket
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path

import pytest
import torch

import launcher
from tests.checkpoints import Sizes, edit_params, write_shards
from tests.end_to_end.command import (
    WHILE_LOADING_S,
    CopyOf,
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


def variables(rank: int, size: int, port: int, address: str = "127.0.0.1") -> dict[str, str]:
    """What torchrun sets for one rank of one machine."""
    numbers = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size, "MASTER_PORT": port}
    return {"MASTER_ADDR": address} | {name: str(number) for name, number in numbers.items()}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


GOOD = variables(0, 2, 29500)
# What is changed in GOOD (None: taken out), and what must be said.
VARIABLES: dict[str, tuple[dict[str, str | None], tuple[Said, ...]]] = {
    "B53_world_size_missing": ({"WORLD_SIZE": None}, ("WORLD_SIZE is not set", "RANK", "torchrun", "unset")),
    "B53_rank_missing": ({"RANK": None}, ("RANK is not set", "WORLD_SIZE", "torchrun", "unset")),
    "B53_local_rank_missing": ({"LOCAL_RANK": None}, ("LOCAL_RANK is not set", "torchrun", "unset")),
    "B53_world_size_a_word": ({"WORLD_SIZE": "two"}, ("WORLD_SIZE is 'two'", "whole number")),
    "B53_world_size_0": ({"WORLD_SIZE": "0"}, ("WORLD_SIZE is 0", "1 or more")),
    "B53_world_size_negative": ({"WORLD_SIZE": "-2"}, ("WORLD_SIZE is -2", "1 or more")),
    "B53_world_size_empty": ({"WORLD_SIZE": ""}, ("WORLD_SIZE is ''", "whole number")),
    "B54_rank_beyond_world_size": ({"RANK": "2"}, ("RANK is 2", "WORLD_SIZE is 2", "0 to 1")),
    "B54_rank_negative": ({"RANK": "-1"}, ("RANK is -1", "0 or more")),
    "B55_local_rank_a_word": ({"LOCAL_RANK": "abc"}, ("LOCAL_RANK is 'abc'", "whole number")),
    "B55_local_rank_beyond": ({"LOCAL_RANK": "5"}, ("LOCAL_RANK is 5", "0 to 1")),
    "B55_local_world_size_too_large": ({"LOCAL_WORLD_SIZE": "3"}, ("LOCAL_WORLD_SIZE is 3", "1 to 2")),
    "B59_master_addr_missing": ({"MASTER_ADDR": None}, ("MASTER_ADDR is not set", "torchrun")),
    "B58_master_port_missing": ({"MASTER_PORT": None}, ("MASTER_PORT is not set", "torchrun")),
    "B58_master_port_a_word": ({"MASTER_PORT": "http"}, ("MASTER_PORT is 'http'", "whole number")),
    "B58_master_port_too_large": ({"MASTER_PORT": "70000"}, ("MASTER_PORT is 70000", "1 to 65535")),
}


@pytest.mark.parametrize(("changes", "says"), VARIABLES.values(), ids=VARIABLES)
def test_a_wrong_variable_is_refused_by_its_name_before_any_waiting(
    changes: dict[str, str | None], says: tuple[Said, ...], copy_of: CopyOf, case: Path
) -> None:
    copy_of(2)
    before = snapshot(case)
    env = {name: value for name, value in {**GOOD, **changes}.items() if value is not None}
    assert_refused(run(complete(), case, env=env), says)
    assert snapshot(case) == before


def test_B52_without_the_launchers_variables_one_process_runs(healthy_answer: str) -> None:
    assert json.loads(healthy_answer)["finish_reason"] == "length"


def test_B53_nproc_per_node_other_than_the_world_is_refused(copy_of: CopyOf, case: Path) -> None:
    copy_of(2)
    outcome = run(complete("ckpt", "--nproc_per_node", "4"), case, env=GOOD)
    assert_refused(outcome, ["--nproc_per_node is 4", "2 ranks", "LOCAL_WORLD_SIZE"])


@pytest.mark.parametrize(
    "mp", [pytest.param(1, id="one_process"), pytest.param(2, id="two_ranks", marks=pytest.mark.drill)]
)
def test_B57_nccl_without_a_gpu_is_refused_with_what_works(mp: int, copy_of: CopyOf, case: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    copy_of(mp)
    before = snapshot(case)
    flags = ["--backend", "nccl", "--device", "auto", *(["--nproc_per_node", "2"] if mp > 1 else [])]
    outcome = run(complete("ckpt", *flags), case)
    assert_refused(outcome, ["--backend nccl", "--backend gloo --device cpu"], WHILE_LOADING_S, alone=True)
    assert snapshot(case) == before


def test_B58_a_port_in_use_is_named_with_its_holder_and_one_that_is_free(copy_of: CopyOf, case: Path) -> None:
    copy_of(2)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        outcome = run(complete(), case, env=variables(0, 2, port))
    holder = f"held by {Path('/proc/self/comm').read_text().strip()} (pid {os.getpid()})"
    says = [f"MASTER_PORT {port}", "127.0.0.1", "in use", holder, "is free"]
    assert_refused(outcome, says, WHILE_LOADING_S, alone=True)


def test_B59_a_name_that_does_not_resolve_is_refused_at_once(copy_of: CopyOf, case: Path) -> None:
    copy_of(2)
    outcome = run(complete(), case, env=variables(0, 2, 29500, "no-such-host.invalid"))
    says = ["MASTER_ADDR 'no-such-host.invalid'", "cannot be resolved", "rank 0"]
    # 5 s and a slow import of torch.
    assert_refused(outcome, says, 10.0, alone=True)


def test_B59_an_address_of_another_host_is_refused_on_rank_0(copy_of: CopyOf, case: Path) -> None:
    copy_of(2)
    outcome = run(complete(), case, env=variables(0, 2, 29500, "192.0.2.1"))
    assert_refused(outcome, ["192.0.2.1:29500", "cannot listen", "MASTER_ADDR"], WHILE_LOADING_S, alone=True)


@pytest.mark.drill
def test_B60_an_address_that_refuses_is_given_up_after_half_a_minute(copy_of: CopyOf, case: Path) -> None:
    copy_of(2)
    port = free_port()
    outcome = run(complete(), case, env=variables(1, 2, port))
    assert_refused(outcome, ["rank 1", f"127.0.0.1:{port}", "30 s", "refused"], 40.0, alone=True)


@pytest.mark.drill
def test_B61_ranks_that_never_come_are_listed_after_half_a_minute(copy_of: CopyOf, case: Path) -> None:
    copy_of(2)
    outcome = run(complete(), case, env=variables(0, 3, free_port()))
    assert_refused(outcome, ["ranks 1, 2 of 3", "30 s", "MASTER_ADDR"], 40.0, alone=True)


def run_pair(
    folders: Sequence[Path], flags: Sequence[Sequence[str]], environs: Sequence[dict[str, str]] = ({}, {})
) -> list[Outcome]:
    """Two ranks as torchrun would start them, each in its folder and with its flags."""
    port = free_port()
    with ExitStack() as stack:
        ranks = [
            stack.enter_context(Running(flags[rank], folders[rank], env={**variables(rank, 2, port), **environs[rank]}))
            for rank in range(2)
        ]
        return [rank.end() for rank in ranks]


def assert_pair_refused(outcomes: Sequence[Outcome], says: Sequence[Said]) -> None:
    """Both end with 2 in time, and one of them has spoken for both."""
    assert [outcome.code for outcome in outcomes] == [2, 2], [outcome.err for outcome in outcomes]
    speakers = [outcome for outcome in outcomes if outcome.errors]
    assert len(speakers) == 1, [outcome.err for outcome in outcomes]
    assert_one_message(speakers[0], alone=False)
    assert_says(speakers[0].errors[0], says)
    for outcome in outcomes:
        assert "Traceback" not in outcome.err
        assert outcome.out == ""
        assert outcome.left == []
        assert outcome.seconds < WHILE_LOADING_S


def test_two_ranks_with_torchruns_variables_answer_once(copy_of: CopyOf, case: Path) -> None:
    copy_of(2)
    outcomes = run_pair([case, case], [complete("ckpt", "--json")] * 2)
    for outcome in outcomes:
        assert_done(outcome)
    assert outcomes[0].out.count("\n") == 1
    assert outcomes[1].out == ""


DIFFERENCES = {
    "B62_max_seq_len": ("max_seq_len", ("--max_seq_len", "32"), ("--max_seq_len", "48"), ("32", "48")),
    "B62_max_gen_len": ("max_gen_len", ("--max_gen_len", "2"), ("--max_gen_len", "3"), ("2", "3")),
    "B62_max_batch_size": ("max_batch_size", ("--max_batch_size", "2"), ("--max_batch_size", "4"), ("2", "4")),
    "B62_prompts": ("prompts", ("--prompts", '["a boat"]'), ("--prompts", '["a cat"]'), ("a boat", "a cat")),
    "B64_seed": ("seed", ("--seed", "11"), ("--seed", "12"), ("11", "12")),
    "B65_temperature": ("temperature", ("--temperature", "0.5"), ("--temperature", "0.7"), ("0.5", "0.7")),
}


# All go one way through the program: the others run with the drills.
ALWAYS = ("B62_max_seq_len", "B62_prompts", "B65_temperature")


@pytest.mark.parametrize(
    ("name", "first", "second", "values"),
    [
        pytest.param(*case, id=name, marks=() if name in ALWAYS else pytest.mark.drill)
        for name, case in DIFFERENCES.items()
    ],
)
def test_a_setting_that_differs_between_ranks_is_named_with_the_ranks_and_values(
    name: str, first: Sequence[str], second: Sequence[str], values: Sequence[str], copy_of: CopyOf, case: Path
) -> None:
    copy_of(2)
    before = snapshot(case)
    outcomes = run_pair([case, case], [complete("ckpt", *first), complete("ckpt", *second)])
    assert_pair_refused(outcomes, ["disagree", name, "rank 0", "rank 1", *values])
    assert snapshot(case) == before


def _other_weights(folder: Path) -> None:
    write_shards(folder, 2, seed=8)


def _other_params(folder: Path) -> None:
    edit_params(folder, norm_eps=1e-6)


@pytest.mark.parametrize(
    ("change", "named"),
    [(_other_weights, "the checkpoint's tensors"), (_other_params, "params.json")],
    ids=["B62_shards", "B62_params"],
)
def test_files_that_differ_between_hosts_are_named(
    change: Callable[[Path], None], named: str, healthy: Callable[[int, Sizes], Path], tmp_path: Path
) -> None:
    hosts = [tmp_path / "host0", tmp_path / "host1"]
    for host in hosts:
        host.mkdir()
        shutil.copytree(healthy(2, Sizes()), host / "ckpt")
    change(hosts[1] / "ckpt")
    outcomes = run_pair(hosts, [complete()] * 2)
    assert_pair_refused(outcomes, ["disagree", named, "rank 0", "rank 1"])


def test_B63_another_version_of_the_code_on_one_rank_is_named(copy_of: CopyOf, case: Path) -> None:
    copy_of(2)
    root = Path(launcher.__file__).resolve().parent.parent
    other = case / "other-version"
    for package in ("launcher", "model", "parallel"):
        shutil.copytree(root / package, other / package, ignore=shutil.ignore_patterns("__pycache__"))
    # Another version by its number and by its text.
    (other / "shardrun-9.9.9.dist-info").mkdir()
    (other / "shardrun-9.9.9.dist-info" / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: shardrun\nVersion: 9.9.9\n"
    )
    with (other / "model" / "norm.py").open("a") as file:
        file.write("\n# changed\n")
    environs = [{}, {"PYTHONPATH": str(other), "PYTHONSAFEPATH": "1"}]
    outcomes = run_pair([case, case], [complete()] * 2, environs)
    assert_pair_refused(outcomes, ["disagree", "shardrun", "rank 0", "rank 1", "9.9.9"])
