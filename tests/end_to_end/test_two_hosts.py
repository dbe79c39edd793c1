"""Runs over two hosts: the answers of one process, however the hosts find each other."""

import json
import os
import signal
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from tests.checkpoints import TINY
from tests.end_to_end.command import Outcome, assert_done, assert_says, complete, run
from tests.end_to_end.hosts_desk import PORT, Desk, Healthy, desk_at, place

DEMO = Path(__file__).resolve().parents[2] / "configs" / "demo"


@pytest.fixture
def desk(case: Path) -> Iterator[Desk]:
    with desk_at(case) as desk:
        yield desk


def demo() -> list[str]:
    # In float32 every MP gives the same tokens.
    flags = ("--max_gen_len", "8", "--dtype", "float32", "--json")
    return complete(DEMO, *flags, prompts='["Once upon a time", "The old boat"]')


@pytest.fixture(scope="module")
def demo_answer(tmp_path_factory: pytest.TempPathFactory) -> str:
    """What one process answers."""
    outcome = run(demo(), tmp_path_factory.mktemp("one-process"))
    assert_done(outcome)
    return outcome.out


def tokens(out: str) -> list[list[int]]:
    return [json.loads(line)["tokens"] for line in out.splitlines()]


def assert_answers(outcomes: Sequence[Outcome], wanted: str, interface: str = "eth0") -> None:
    """Host 0 prints one process's answers, host 1 nothing."""
    for outcome in outcomes:
        said = f"GLOO_SOCKET_IFNAME={interface}, NCCL_SOCKET_IFNAME={interface}"
        assert_done(outcome, ["2 hosts meet at", said])
    assert tokens(outcomes[0].out) == tokens(wanted)
    assert outcomes[1].out == ""


def test_two_hosts_answer_as_one_process_does(desk: Desk, demo_answer: str) -> None:
    desk.start_all(demo())
    assert_answers(desk.end(), demo_answer)


@pytest.mark.drill
def test_two_hosts_of_two_ranks_answer_as_one_process_does(desk: Desk, demo_answer: str) -> None:
    desk.start_all(demo(), "--nproc_per_node", "2", endpoint=f"10.78.0.1:{PORT}")
    assert_answers(desk.end(), demo_answer)


@pytest.mark.drill
def test_a_job_file_runs_over_two_hosts_with_the_places_as_overrides(desk: Desk, case: Path, demo_answer: str) -> None:
    text = f"""
        command: complete
        model: {{ckpt_dir: {DEMO}, max_seq_len: 32, dtype: float32}}
        parallel: {{nnodes: 2, device: cpu, rdzv_endpoint: "hA:{PORT}"}}
        generation: {{prompts: [Once upon a time, The old boat], max_gen_len: 8, temperature: 0, json: true}}
    """
    (case / "job.yaml").write_text(text)
    for number in range(2):
        desk.start(number, ["run", str(case / "job.yaml"), f"parallel.node_rank={number}"])
    assert_answers(desk.end(), demo_answer)


@pytest.mark.drill
@pytest.mark.parametrize("first", [0, 1])
def test_hosts_that_number_themselves_answer_as_one_process_does(first: int, desk: Desk, demo_answer: str) -> None:
    """c10d: host 0 is the endpoint's, whoever comes first."""
    words = [*demo(), "--nnodes", "2", "--rdzv_backend", "c10d", "--rdzv_endpoint", f"hA:{PORT}", "--rdzv_id", "x"]
    for number in (first, 1 - first):
        desk.start(number, words)
        time.sleep(1.0)
    outcomes = desk.end()
    assert_answers(outcomes if first == 0 else outcomes[::-1], demo_answer)


@pytest.mark.drill
@pytest.mark.parametrize("endpoint", ["[fd00:78::1]", "only6", "both", "two"])
def test_hosts_meet_by_ipv6_and_by_a_name_of_several_addresses(endpoint: str, case: Path, demo_answer: str) -> None:
    lines = "fd00:78::1 only6\nfd00:78::1 both\n10.78.0.1 both\n10.99.0.1 two\n10.78.0.1 two"
    with desk_at(case, more_lines={0: lines, 1: lines}) as desk:
        # Of the name's two addresses the first is of no use to the other host.
        desk.hosts[0].run("ip", "addr", "add", "10.99.0.1/32", "dev", "lo")
        desk.start_all(demo(), endpoint=f"{endpoint}:{PORT}")
        assert_answers(desk.end(), demo_answer)


@pytest.mark.drill
def test_hosts_that_have_ipv6_alone_answer_as_one_process_does(desk: Desk, demo_answer: str) -> None:
    for host in desk.hosts.hosts:
        host.run("ip", "addr", "del", f"{host.address}/24", "dev", "eth0")
    desk.start_all(demo(), endpoint=f"[fd00:78::1]:{PORT}")
    assert_answers(desk.end(), demo_answer)


@pytest.mark.drill
@pytest.mark.parametrize("backend", ["static", "c10d"])
def test_debians_line_for_the_own_name_does_not_keep_hosts_from_meeting(
    backend: str, case: Path, demo_answer: str
) -> None:
    """127.0.1.1 for the own name: each host would take the endpoint, or itself, for a loopback address."""
    with desk_at(case, more_lines={0: "127.0.1.1 hA", 1: "127.0.1.1 hB"}) as desk:
        # A second interface, as containers' bridges are.
        desk.hosts[0].run("ip", "link", "add", "docker0", "type", "bridge")
        desk.hosts[0].run("ip", "addr", "add", "172.17.0.1/16", "dev", "docker0")
        desk.start_all(demo(), "--rdzv_backend", backend)
        assert_answers(desk.end(), demo_answer)


@pytest.mark.drill
def test_an_interface_that_has_several_addresses_is_found_by_any_of_them(desk: Desk, demo_answer: str) -> None:
    desk.hosts[0].run("ip", "addr", "add", "10.78.0.77/24", "dev", "eth0")
    desk.start_all(demo(), endpoint=f"10.78.0.77:{PORT}")
    assert_answers(desk.end(), demo_answer)


@pytest.mark.drill
def test_two_launchers_of_one_host_meet_over_loopback(case: Path, demo_answer: str) -> None:
    with desk_at(case, count=1) as desk:
        for number in range(2):
            desk.start(0, [*demo(), *place(number, f"localhost:{PORT}")])
        assert_answers(desk.end(), demo_answer, interface="lo")


@pytest.mark.drill
def test_the_port_is_free_again_at_once(desk: Desk, healthy: Healthy) -> None:
    for _ in range(3):
        desk.start_all(complete(healthy(2, TINY)))
        assert [outcome.code for outcome in desk.end()] == [0, 0]
        desk.running.clear()


@pytest.mark.drill
def test_a_run_over_two_hosts_goes_on_after_a_rank_was_killed(desk: Desk, case: Path) -> None:
    prompts = json.dumps([f"Once upon a time {number}" for number in range(6)])
    words = complete(DEMO, "--max_gen_len", "6", "--max_batch_size", "2", "--dtype", "float32", prompts=prompts)
    alone = run([*words, "--json"], case)
    assert_done(alone)
    output = case / "answers.jsonl"
    faults = "kill:rank=1,step=3;kill:rank=0,step=3,attempt=1"
    desk.start_all(words, "--max_restarts", "2", "--output", str(output), "--inject", faults)
    outcomes = desk.end(90)
    assert [outcome.code for outcome in outcomes] == [0, 0], [outcome.err for outcome in outcomes]
    assert_says(outcomes[0].err, ["; all ranks are started again (1 of 2 times)"])
    assert_says(outcomes[0].err, ["; all ranks are started again (2 of 2 times)"])
    assert tokens(output.read_text()) == tokens(alone.out)


@pytest.mark.drill
def test_each_host_keeps_the_logs_of_its_own_ranks(desk: Desk, healthy: Healthy, case: Path) -> None:
    words = complete(healthy(2, TINY), "--nproc_per_node", "2", "--rdzv_id", "mine")
    for number in range(2):
        desk.start(number, [*words, *place(number), "--log_dir", str(case / f"logs-{number}")])
    outcomes = desk.end()
    assert [outcome.code for outcome in outcomes] == [0, 0], [outcome.err for outcome in outcomes]
    for number, ranks in enumerate([(0, 1), (2, 3)]):
        kept = sorted(path.name for path in (case / f"logs-{number}" / "mine").iterdir())
        assert kept == [f"rank{rank}.log" for rank in ranks]


@pytest.mark.drill
def test_a_run_of_three_hosts_whose_second_comes_late_is_not_given_up(case: Path, healthy: Healthy) -> None:
    """Longer than the silence after which a launcher is lost."""
    with desk_at(case, count=3) as desk:
        for number, wait_s in ((0, 0.0), (1, 12.0), (2, 0.0)):
            desk.start(number, [*complete(healthy(1, TINY)), *place(number, hosts=3)])
            time.sleep(wait_s)
        assert [outcome.code for outcome in desk.end()] == [0, 0, 0]


@pytest.mark.drill
def test_two_runs_at_once_over_the_same_hosts_do_not_disturb_each_other(desk: Desk, demo_answer: str) -> None:
    for port in (PORT, PORT + 1):
        desk.start_all(demo(), endpoint=f"hA:{port}")
    outcomes = desk.end(90)
    assert_answers(outcomes[:2], demo_answer)
    assert_answers(outcomes[2:], demo_answer)


@pytest.mark.drill
def test_a_slow_link_raises_no_false_alarm(desk: Desk, healthy: Healthy, case: Path) -> None:
    """A fifth of a second each way, with the shortest patience that makes sense there."""
    if not Path("/dev/net/tun").exists():
        pytest.skip("a slow cable needs /dev/net/tun")
    words = complete(healthy(2, TINY), "--max_gen_len", "2", "--json")
    alone = run(words, case)
    with desk.hosts.slow_cable(0.2):
        desk.start_all(words, "--heartbeat_s", "3")
        outcomes = desk.end(90)
    assert_answers(outcomes, alone.out)
    # It was slow: each token takes several collectives.
    assert outcomes[0].seconds > alone.seconds + 10


@pytest.mark.drill
def test_a_cable_that_is_mended_in_time_disturbs_nobody(desk: Desk, healthy: Healthy) -> None:
    running = desk.start_endless(healthy(2, TINY))
    desk.hosts.cut(1)
    time.sleep(3.0)
    desk.hosts.mend(1)
    time.sleep(6.0)
    before = len(running[0].out)
    time.sleep(2.0)
    assert len(running[0].out) > before
    os.kill(running[0].process.pid, signal.SIGTERM)
    assert [outcome.code for outcome in desk.end()] == [143, 143]
