"""Messages between launchers, over a real pair of sockets."""

import json
import resource
import socket
import struct
import time
from collections.abc import Iterator

import pytest

from launcher.hosts.wire import LONGEST_BYTES, Lost, Wire


@pytest.fixture
def ends() -> Iterator[tuple[Wire, socket.socket]]:
    """A wire, and the bare socket at its other end."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        other = socket.create_connection(server.getsockname())
        wire = Wire(server.accept()[0])
    with other:
        yield wire, other
    wire.close()


def read(wire: Wire, count: int = 1) -> list[dict[str, object]]:
    """So many messages; on the loopback device they are there almost at once."""
    found: list[dict[str, object]] = []
    for _ in range(1000):
        found += wire.messages()
        if len(found) >= count:
            break
        time.sleep(0.001)
    return found


def wait_for(wire: Wire, bytes_there: int = 1) -> None:
    """Until something can be read there."""
    wire.connection.settimeout(5)
    wire.connection.recv(bytes_there, socket.MSG_PEEK)


def test_a_message_arrives_as_it_was_sent(ends: tuple[Wire, socket.socket]) -> None:
    wire, other = ends
    wire.send("beat", ranks={"0": [1, None]}, text="ü\n")
    line = other.recv(1000)
    assert line.count(b"\n") == 1
    assert json.loads(line) == {"kind": "beat", "ranks": {"0": [1, None]}, "text": "ü\n"}


def test_a_message_that_comes_in_two_parts_is_one(ends: tuple[Wire, socket.socket]) -> None:
    wire, other = ends
    other.sendall(b'{"kind": "be')
    wait_for(wire)
    assert wire.messages() == []
    other.sendall(b'at"}\n{"kind"')
    wait_for(wire)
    assert wire.messages() == [{"kind": "beat"}]
    other.sendall(b': "end"}\n')
    wait_for(wire)
    assert wire.messages() == [{"kind": "end"}]


def test_what_comes_with_an_answer_is_kept(ends: tuple[Wire, socket.socket]) -> None:
    wire, other = ends
    other.sendall(b'{"kind": "beat"}\n{"kind": "here"}\n{"kind": "begin"}\n')
    assert wire.answer({"here", "refused"}, 5) == {"kind": "here"}
    assert wire.messages() == [{"kind": "begin"}]


def test_an_answer_that_does_not_come_is_none(ends: tuple[Wire, socket.socket]) -> None:
    assert ends[0].answer({"here"}, 0.05) is None


@pytest.mark.parametrize("hard", [False, True], ids=["closed", "reset"])
def test_last_words_are_read_before_the_end_is_told(hard: bool, ends: tuple[Wire, socket.socket]) -> None:
    wire, other = ends
    other.sendall(b'{"kind": "stopped"}\n')
    if hard:  # as a process ends that has not read all that was sent to it
        other.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    wait_for(wire)
    other.close()
    assert wire.messages() == [{"kind": "stopped"}]
    with pytest.raises(Lost):
        wire.messages()


def test_half_a_message_is_nothing_where_the_other_end_has_gone(ends: tuple[Wire, socket.socket]) -> None:
    wire, other = ends
    other.sendall(b'{"kind": "verd')
    other.close()
    with pytest.raises(Lost, match="it closed the connection"):
        read(wire)


@pytest.mark.parametrize(
    "said",
    [
        b"GET / HTTP/1.1\r\n",
        b"\xff\xfe\n",
        b"[]\n",
        b'{"no": "kind"}\n',
        b'{"kind": ["end"]}\n',
        b"[" * 100_000 + b"\n",
        b"1" * 10_000 + b"\n",
    ],
    ids=["http", "bytes", "list", "no_kind", "kind_is_a_list", "nested", "long_number"],
)
def test_whoever_speaks_otherwise_is_none_of_ours(said: bytes, ends: tuple[Wire, socket.socket]) -> None:
    wire, other = ends
    other.sendall(said)
    with pytest.raises(Lost, match="what it sends is not ours"):
        read(wire)
    with pytest.raises(Lost, match="what it sends is not ours"):
        wire.messages()


def test_a_line_without_end_is_none_of_ours(ends: tuple[Wire, socket.socket]) -> None:
    wire, other = ends
    other.settimeout(1)
    with pytest.raises(Lost, match="what it sends is not ours"):  # noqa: PT012
        for _ in range(LONGEST_BYTES // 2**16 + 2):
            other.sendall(b"x" * 2**16)
            wait_for(wire)
            wire.messages()


def test_a_message_of_a_million_letters_arrives(ends: tuple[Wire, socket.socket]) -> None:
    wire, other = ends
    line = json.dumps({"kind": "ended", "text": "x" * 10**6}).encode() + b"\n"
    for at in range(0, len(line), 2**16):
        other.sendall(line[at : at + 2**16])
        wait_for(wire)
        found = wire.messages()
    assert [len(message["text"]) for message in found] == [10**6]


def test_sending_to_one_who_has_gone_is_lost_and_no_signal(ends: tuple[Wire, socket.socket]) -> None:
    wire, other = ends
    other.close()
    with pytest.raises(Lost):
        send_often(wire, "")


def test_sending_to_one_who_does_not_read_is_lost_in_time(ends: tuple[Wire, socket.socket]) -> None:
    wire, _ = ends
    wire.connection.settimeout(0.2)
    with pytest.raises(Lost, match="timed out"):
        send_often(wire, "x" * 10**6)


def send_often(wire: Wire, text: str) -> None:
    for _ in range(1000):
        wire.send("beat", text=text)


def test_silence_is_measured_from_what_came_last(ends: tuple[Wire, socket.socket]) -> None:
    wire, other = ends
    before = wire.silent_s
    assert wire.silent_s > before
    other.sendall(b"x")
    wait_for(wire)
    passed = wire.silent_s
    wire.messages()
    assert wire.silent_s < passed


def test_a_thousand_connections_are_not_too_many() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < 4000:
        pytest.skip("no more than 1024 files may be open here")
    resource.setrlimit(resource.RLIMIT_NOFILE, (4000, hard))
    held: list[socket.socket] = []
    try:
        held = [socket.socket() for _ in range(1100)]
        ours, other = socket.socketpair(socket.AF_UNIX)
        held += [ours, other]
        assert ours.fileno() > 1023
        with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as caller:
            wire = Wire(server.accept()[0])
            caller.sendall(b'{"kind": "beat"}\n')
            wait_for(wire)
            assert wire.messages() == [{"kind": "beat"}]
            wire.close()
    finally:
        for each in held:
            each.close()
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
