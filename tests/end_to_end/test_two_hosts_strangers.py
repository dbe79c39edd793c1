"""Strangers at the endpoint of two hosts, and callers that are no launchers: told apart, and never believed."""

import contextlib
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.checkpoints import TINY
from tests.end_to_end.command import assert_says, complete
from tests.end_to_end.hosts_desk import PORT, Desk, Healthy, Note, desk_at, note, place


@pytest.fixture
def desk(case: Path) -> Iterator[Desk]:
    with desk_at(case) as desk:
        yield desk


STRANGERS = {
    "an_http_server": "from http.server import *; HTTPServer(('', {port}), BaseHTTPRequestHandler).serve_forever()",
    "a_torchrun_store": "from torch.distributed import *; import time; "
    "store = TCPStore('10.78.0.1', {port}, is_master=True, wait_for_workers=False); time.sleep(99)",
    "one_who_says_nothing": "import socket, time; server = socket.create_server(('', {port})); time.sleep(99)",
    "one_who_talks_without_end": "import socket\nserver = socket.create_server(('', {port}))\n"
    "caller = server.accept()[0]\nwhile True: caller.sendall(b'x' * 999)",
}


@pytest.mark.drill
@pytest.mark.parametrize("name", STRANGERS)
def test_a_stranger_on_the_port_is_not_taken_for_host_0(
    name: str, desk: Desk, healthy: Healthy, record_property: Note
) -> None:
    words = [*desk.hosts[0].wrapper, sys.executable, "-c", STRANGERS[name].format(port=PORT)]
    with subprocess.Popen(words, stderr=subprocess.DEVNULL) as stranger:
        try:
            desk.wait_until_listening(0)
            since = time.monotonic()
            outcomes = [running.end() for running in desk.start_all(complete(healthy(2, TINY)))]
        finally:
            stranger.kill()
    assert note(record_property, outcomes, since) < 8
    assert [outcome.code for outcome in outcomes] == [2, 2]
    assert_says(outcomes[0].errors[0], ["rdzv_endpoint hA:29400: port 29400 is in use on hA, held by python"])
    assert_says(outcomes[0].errors[0], ["; port 29401 is free: give it on every host"])
    assert_says(outcomes[1].errors[0], ["what listens at hA:29400 is not node 0 of this run"])


CALLERS = {
    "http": b"GET / HTTP/1.1\r\nHost: hA\r\n\r\n",
    "garbage": b"\x00\xff\n" * 100,
    "nested_without_end": b"[" * 100_000 + b"\n",
    "no_hello": b'{"kind": "hello"}\n{"kind": 3}\n[1]\n',
    "a_hello_of_wrong_types": b'{"kind": "hello", "hello": {"rdzv_id": "", "nnodes": "two", "version": []}}\n',
    "without_end": b"x" * 5_000_000,
    "nothing": b"",
}


@pytest.mark.drill
def test_strangers_that_call_do_not_keep_the_hosts_from_meeting(desk: Desk, healthy: Healthy) -> None:
    words = complete(healthy(2, TINY))
    desk.start(0, [*words, *place(0)])
    desk.wait_until_listening(0)
    script = "import socket, sys; s = socket.create_connection(('hA', 29400)); s.sendall(sys.stdin.buffer.read())\n"
    script += "s.settimeout(1)\nprint(s.recv(99))"
    for said in CALLERS.values():
        with contextlib.suppress(subprocess.CalledProcessError):
            call = [*desk.hosts[1].wrapper, sys.executable, "-c", script]
            subprocess.run(call, input=said, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL, check=True)
    desk.start(1, [*words, *place(1)])
    assert [outcome.code for outcome in desk.end()] == [0, 0]


@pytest.mark.drill
def test_a_forgotten_launcher_of_an_older_run_is_named(desk: Desk, healthy: Healthy, record_property: Note) -> None:
    words = complete(healthy(2, TINY), "--join_timeout_s", "25")
    old = desk.start(0, [*words, *place(0), "--rdzv_id", "old"])
    desk.wait_until_listening(0)
    since = time.monotonic()
    outcomes = [running.end() for running in desk.start_all(words, "--rdzv_id", "new")]
    assert note(record_property, outcomes, since) < 6
    assert [outcome.code for outcome in outcomes] == [2, 2]
    assert_says(outcomes[0].errors[0], [f"port 29400 is in use on hA, held by python (pid {old.process.pid})"])
    assert_says(outcomes[1].errors[0], ["is another run's: rdzv_id is 'new' there and 'old' on node 0 (host hA)"])
    old.process.terminate()
    assert old.end().code == 143
