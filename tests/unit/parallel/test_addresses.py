"""Names, addresses and ports of this host, with the system's own resolver and sockets."""

import os
import socket
import time

import pytest

from parallel.addresses import (
    Unresolved,
    free_port,
    hold_port,
    holder_of,
    is_loopback,
    is_own,
    plain_address,
    resolve,
    resolve_all,
)

V4, V6 = socket.AF_INET, socket.AF_INET6


def test_an_address_is_its_own_name() -> None:
    assert resolve("127.0.0.1") == (V4, "127.0.0.1")
    assert resolve_all("::1") == [(V6, "::1")]


def test_a_name_gives_ipv4_first_and_no_address_twice() -> None:
    found = resolve_all("localhost")
    assert found[0] == (V4, "127.0.0.1")
    assert len(set(found)) == len(found)


@pytest.mark.parametrize("name", ["nobody.invalid", "", "a b", "x" * 70, "\u2603" * 70])
def test_a_name_that_is_none_has_a_reason_in_time(name: str) -> None:
    begin = time.monotonic()
    with pytest.raises(Unresolved, match=r"."):
        resolve(name)
    assert time.monotonic() - begin < 5


def test_addresses_of_this_host_alone_can_be_listened_at() -> None:
    assert is_own((V4, "127.0.0.1"))
    # 192.0.2.0/24 is nobody's (RFC 5737).
    assert not is_own((V4, "192.0.2.1"))


def test_loopback_is_told_from_what_others_reach() -> None:
    loops = ["127.0.0.1", "127.0.1.1", "::1", "::ffff:127.0.0.1"]
    others = ["10.78.0.1", "::ffff:10.78.0.1", "fd00::1", "fe80::1%eth0"]
    assert [is_loopback(address) for address in [*loops, *others]] == [True] * 4 + [False] * 4


def test_ipv4_in_ipv6s_clothes_is_ipv4() -> None:
    addresses = ["::ffff:10.0.0.1", "10.0.0.1", "::1", "::ffff:a:b"]
    assert [plain_address(address) for address in addresses] == ["10.0.0.1", "10.0.0.1", "::1", "::ffff:a:b"]


def test_a_port_that_is_held_is_nobody_elses_until_the_one_it_is_for_listens() -> None:
    with hold_port(V4, "127.0.0.1") as held:
        port = held.getsockname()[1]
        with socket.socket() as other, pytest.raises(OSError, match="in use"):
            other.bind(("127.0.0.1", port))
        with socket.socket() as rightful:
            rightful.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            rightful.bind(("127.0.0.1", port))
            rightful.listen()
            with socket.create_connection(("127.0.0.1", port)):
                pass


def test_a_free_port_can_be_taken() -> None:
    with socket.socket() as taker:
        taker.bind(("127.0.0.1", free_port(V4, "127.0.0.1")))


def test_whoever_listens_on_a_port_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert holder_of(port).endswith(f"(pid {os.getpid()})")
        assert holder_of(port).startswith("held by ")
    assert holder_of(port) == ""
