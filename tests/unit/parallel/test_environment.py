"""Reading torchrun's variables: a value that cannot be right is named, with what was wanted."""

import pytest

from parallel.environment import Environment, read_environment, threads_from_environment
from parallel.errors import RefusedError

TORCHRUN = {
    "RANK": "3",
    "WORLD_SIZE": "8",
    "LOCAL_RANK": "1",
    "LOCAL_WORLD_SIZE": "2",
    "MASTER_ADDR": "node7",
    "MASTER_PORT": "29500",
}


def changed(**values: str) -> dict[str, str]:
    return TORCHRUN | values


def without(*names: str) -> dict[str, str]:
    return {name: value for name, value in TORCHRUN.items() if name not in names}


def refusal(environ: dict[str, str]) -> str:
    with pytest.raises(RefusedError) as caught:
        read_environment(environ)
    return str(caught.value)


def test_without_a_launcher_this_is_rank_0_of_1() -> None:
    assert read_environment({"MASTER_ADDR": "leftover", "PATH": "/bin"}) == Environment()
    assert (Environment().rank, Environment().world_size, Environment().launched) == (0, 1, False)


def test_torchruns_variables_are_read() -> None:
    assert read_environment(changed()) == Environment(
        rank=3,
        world_size=8,
        local_rank=1,
        local_world_size=2,
        launched=True,
        master_addr="node7",
        master_port=29500,
    )


def test_torchruns_agent_store_and_restart_count_are_read() -> None:
    env = read_environment(changed(TORCHELASTIC_USE_AGENT_STORE="True", TORCHELASTIC_RESTART_COUNT="2"))
    assert (env.agent_store, env.attempt) == (True, 2)
    assert not read_environment(changed(TORCHELASTIC_USE_AGENT_STORE="False")).agent_store


def test_the_process_environment_is_read_where_none_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in TORCHRUN.items():
        monkeypatch.setenv(name, value)
    assert read_environment().rank == 3


def test_without_local_world_size_the_ranks_up_to_this_one_are_here() -> None:
    assert read_environment(without("LOCAL_WORLD_SIZE")).local_world_size == 2


def test_a_rendezvous_file_takes_the_place_of_the_address() -> None:
    env = read_environment(without("MASTER_ADDR", "MASTER_PORT") | {"SHARDRUN_RENDEZVOUS_FILE": "/tmp/meet"})
    assert (env.rendezvous_file, env.master_addr, env.master_port) == ("/tmp/meet", "", 0)


def test_one_launched_rank_needs_no_address() -> None:
    alone = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}
    assert read_environment(alone) == Environment(launched=True)


@pytest.mark.parametrize(
    ("missing", "text"),
    [
        (("WORLD_SIZE",), "WORLD_SIZE is not set although RANK and LOCAL_RANK are"),
        (("RANK",), "RANK is not set although WORLD_SIZE and LOCAL_RANK are"),
        (("LOCAL_RANK",), "LOCAL_RANK is not set although RANK and WORLD_SIZE are"),
        (("RANK", "LOCAL_RANK"), "RANK is not set although WORLD_SIZE is"),
    ],
)
def test_a_missing_variable_is_named_beside_those_that_are_set(missing: tuple[str, ...], text: str) -> None:
    wanted = f"{text}; start the ranks with torchrun, or unset them all to run in one process"
    assert refusal(without(*missing)) == wanted


@pytest.mark.parametrize("name", ["MASTER_ADDR", "MASTER_PORT"])
@pytest.mark.parametrize("empty", [False, True])
def test_several_ranks_without_an_address_are_refused(name: str, empty: bool) -> None:
    environ = changed(**{name: ""}) if empty else without(name)
    assert refusal(environ) == (
        f"{name} is not set although WORLD_SIZE is 8; start the ranks with torchrun, "
        "or set MASTER_ADDR and MASTER_PORT to where rank 0 listens"
    )


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("WORLD_SIZE", "two", "WORLD_SIZE is 'two'; wanted a whole number, 1 or more (torchrun sets it)"),
        ("WORLD_SIZE", "", "WORLD_SIZE is ''; wanted a whole number, 1 or more (torchrun sets it)"),
        ("WORLD_SIZE", "2.0", "WORLD_SIZE is '2.0'; wanted a whole number, 1 or more (torchrun sets it)"),
        ("WORLD_SIZE", "0", "WORLD_SIZE is 0; wanted 1 or more (torchrun sets it)"),
        ("WORLD_SIZE", "-2", "WORLD_SIZE is -2; wanted 1 or more (torchrun sets it)"),
        ("RANK", "first", "RANK is 'first'; wanted a whole number, 0 or more (torchrun sets it)"),
        ("RANK", "-1", "RANK is -1; wanted 0 or more (torchrun sets it)"),
        ("RANK", "8", "RANK is 8 but WORLD_SIZE is 8; ranks count from 0 to 7"),
        ("RANK", "80", "RANK is 80 but WORLD_SIZE is 8; ranks count from 0 to 7"),
        ("LOCAL_RANK", "abc", "LOCAL_RANK is 'abc'; wanted a whole number, 0 to 1 (torchrun sets it)"),
        ("LOCAL_RANK", "2", "LOCAL_RANK is 2; wanted 0 to 1 (torchrun sets it)"),
        ("LOCAL_WORLD_SIZE", "9", "LOCAL_WORLD_SIZE is 9; wanted 1 to 8 (torchrun sets it)"),
        ("LOCAL_WORLD_SIZE", "x", "LOCAL_WORLD_SIZE is 'x'; wanted a whole number, 1 to 8 (torchrun sets it)"),
        ("MASTER_PORT", "http", "MASTER_PORT is 'http'; wanted a whole number, 1 to 65535 (torchrun sets it)"),
        ("MASTER_PORT", "70000", "MASTER_PORT is 70000; wanted 1 to 65535 (torchrun sets it)"),
        (
            "TORCHELASTIC_RESTART_COUNT",
            "x",
            "TORCHELASTIC_RESTART_COUNT is 'x'; wanted a whole number, 0 or more (torchrun sets it)",
        ),
    ],
)
def test_a_value_that_cannot_be_right_is_named_with_what_was_wanted(name: str, value: str, text: str) -> None:
    assert refusal(changed(**{name: value})) == text


@pytest.mark.parametrize(
    ("text", "threads"), [("8", 8), ("2", 2), ("1", None), ("0", None), ("", None), ("many", None), ("-3", None)]
)
def test_omp_num_threads_counts_but_for_torchruns_own_1(text: str, threads: int | None) -> None:
    assert threads_from_environment({"OMP_NUM_THREADS": text}) == threads


def test_without_omp_num_threads_nobody_has_set_threads() -> None:
    assert threads_from_environment({}) is None
