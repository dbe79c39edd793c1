"""How the ranks meet, over real sockets of the loopback device: each fault within its limit, in a sentence."""

import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
import torch.distributed as dist

from parallel.environment import Environment
from parallel.errors import RefusedError, UnreachedError
from parallel.rendezvous import open_store, wait_for

HOST = "127.0.0.1"
# Enough for two threads of one process to meet; no test waits for it.
MEET_S = 10.0


def rank_at(port: int, rank: int, world_size: int = 2, host: str = HOST) -> Environment:
    return Environment(rank=rank, world_size=world_size, launched=True, master_addr=host, master_port=port)


def refusal(env: Environment, timeout_s: float) -> tuple[str, float]:
    """The text of the refusal, and after how many seconds it came."""
    begin = time.monotonic()
    with pytest.raises(RefusedError) as caught:
        open_store(env, timeout_s)
    return str(caught.value), time.monotonic() - begin


@pytest.fixture
def free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    """Somebody else's socket, which accepts connections and says nothing."""
    with socket.socket() as other:
        other.bind((HOST, 0))
        other.listen()
        yield other


def test_a_port_in_use_is_named_with_a_free_one(listener: socket.socket) -> None:
    port = int(listener.getsockname()[1])
    text, _ = refusal(rank_at(port, 0), 0.3)
    assert f"held by {Path('/proc/self/comm').read_text().strip()} (pid {os.getpid()})" in text
    head, _, tail = text.partition(f"MASTER_PORT {port} on {HOST} is in use, held by ")
    free, _, advice = tail.partition("; port ")[2].partition(" ")
    assert (head, advice) == ("", "is free: set MASTER_PORT to it on every rank")
    with socket.socket() as taker:
        taker.bind((HOST, int(free)))


@pytest.mark.parametrize("rank", [0, 1])
def test_a_master_addr_that_cannot_be_resolved_is_refused_within_5_s(rank: int) -> None:
    text, seconds = refusal(rank_at(29500, rank, host="nobody.invalid"), 0.3)
    assert text.startswith("MASTER_ADDR 'nobody.invalid' cannot be resolved: ")
    assert text.endswith("; set it to the name or address of the host that runs rank 0")
    assert seconds < 5


def test_an_address_of_another_host_is_refused_on_rank_0(free_port: int) -> None:
    # 192.0.2.0/24 is nobody's (RFC 5737); rank 0 only tries to bind to it.
    text, _ = refusal(rank_at(free_port, 0, host="192.0.2.1"), 0.3)
    assert text == (
        f"rank 0 cannot listen on 192.0.2.1:{free_port} (MASTER_ADDR:MASTER_PORT): Cannot assign requested address; "
        "MASTER_ADDR must be an address of the host that runs rank 0"
    )


@pytest.mark.parametrize(("world_size", "missing"), [(2, "rank 1"), (4, "ranks 1, 2, 3")])
def test_peers_that_never_come_are_named(free_port: int, world_size: int, missing: str) -> None:
    text, seconds = refusal(rank_at(free_port, 0, world_size), 0.3)
    assert text == (
        f"{missing} of {world_size} did not come within 0.3 s; "
        "see whether each was started, with the same MASTER_ADDR and MASTER_PORT"
    )
    assert seconds < 2


def test_an_address_that_refuses_is_named_with_its_port(free_port: int) -> None:
    text, seconds = refusal(rank_at(free_port, 1), 0.3)
    assert text == (
        f"rank 1 cannot reach rank 0 at {HOST}:{free_port} (MASTER_ADDR:MASTER_PORT) after 0.3 s: "
        "Connection refused; start rank 0 there, or correct the address"
    )
    assert seconds < 3


def test_a_port_where_somebody_else_listens_is_refused_in_time(listener: socket.socket) -> None:
    port = int(listener.getsockname()[1])
    ended_with: list[Exception] = []

    def meet() -> None:
        try:
            open_store(rank_at(port, 1), 0.3)
        except Exception as error:
            ended_with.append(error)

    # In a thread, so that a wait without a limit is a failure and not a hang: closing the socket ends it.
    meeting = threading.Thread(target=meet, daemon=True)
    meeting.start()
    meeting.join(4)
    in_time = not meeting.is_alive()
    listener.close()
    meeting.join(4)
    assert in_time, "rank 1 still waits for an answer from a port that is not rank 0's"
    assert [type(error) for error in ended_with] == [UnreachedError]
    assert f"{HOST}:{port}" in str(ended_with[0])


def meet_all(envs: list[Environment]) -> list[dist.Store]:
    with ThreadPoolExecutor(len(envs)) as pool:
        return list(pool.map(lambda env: open_store(env, MEET_S), envs))


def test_ranks_meet_in_one_store_that_listens_on_master_addr_alone(free_port: int) -> None:
    stores = meet_all([rank_at(free_port, rank, 3) for rank in range(3)])
    stores[2].set("greeting", "hello")
    assert [wait_for(store, "greeting", MEET_S) for store in stores] == [b"hello"] * 3
    # Line by line: sl, local address, remote address, state; 0A is LISTEN.
    rows = [line.split() for name in ("tcp", "tcp6") for line in Path("/proc/net", name).read_text().splitlines()[1:]]
    listening = [row[1] for row in rows if row[3] == "0A" and row[1].endswith(f":{free_port:04X}")]
    assert listening == [f"0100007F:{free_port:04X}"]


def test_rank_1_waits_for_a_rank_0_that_comes_later(free_port: int) -> None:
    with ThreadPoolExecutor(1) as pool:
        early = pool.submit(open_store, rank_at(free_port, 1), MEET_S)
        time.sleep(0.3)
        late = open_store(rank_at(free_port, 0), MEET_S)
        late.set("greeting", "hello")
        assert early.result().get("greeting") == b"hello"


def test_torchruns_own_store_is_joined_and_not_served_again() -> None:
    agent = dist.TCPStore(HOST, 0, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=MEET_S))
    envs = [replace(rank_at(agent.port, rank), agent_store=True) for rank in range(2)]
    stores = meet_all(envs)
    stores[0].set("greeting", "hello")
    assert stores[1].get("greeting") == b"hello"


def test_ranks_meet_over_a_file_without_a_port(tmp_path: Path) -> None:
    envs = [replace(rank_at(0, rank), rendezvous_file=str(tmp_path / "meet")) for rank in range(2)]
    stores = meet_all(envs)
    stores[0].set("greeting", "hello")
    assert stores[1].get("greeting") == b"hello"


def test_a_restart_does_not_meet_the_attempt_before(tmp_path: Path) -> None:
    envs = [replace(rank_at(0, rank), rendezvous_file=str(tmp_path / "meet")) for rank in range(2)]
    meet_all(envs)
    text, _ = refusal(replace(envs[0], attempt=1), 0.3)
    assert text.startswith("rank 1 of 2 did not come within 0.3 s")


@pytest.mark.parametrize("still_wanted", [lambda: True, lambda: False], ids=["out-of-time", "given-up"])
def test_a_key_that_does_not_come_is_none(tmp_path: Path, still_wanted: Callable[[], bool]) -> None:
    store = dist.FileStore(str(tmp_path / "meet"), 1)
    begin = time.monotonic()
    assert wait_for(store, "never", 0.2 if still_wanted() else 60.0, still_wanted) is None
    assert time.monotonic() - begin < 2


def test_a_key_that_comes_later_is_waited_for(tmp_path: Path) -> None:
    store = dist.FileStore(str(tmp_path / "meet"), 1)
    threading.Timer(0.1, store.set, ("key", "value")).start()
    assert wait_for(store, "key", MEET_S) == b"value"
