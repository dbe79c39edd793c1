"""Endpoints and interfaces, with this host's own resolver, sockets and loopback device."""

import os
import socket
import sys
from collections.abc import Iterator

import pytest

from launcher.hosts.address import Endpoint, check_interfaces, interface_of, interface_variables, listen
from launcher.hosts.interfaces import read_interfaces
from parallel.errors import RefusedError

V4, V6 = socket.AF_INET, socket.AF_INET6


@pytest.fixture(autouse=True)
def _nothing_given(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def taken() -> Iterator[int]:
    """A port where this process listens."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield int(server.getsockname()[1])


def endpoint_at(port: int, *addresses: str, host: str = "") -> Endpoint:
    host = host or addresses[0]
    found = tuple((V6 if ":" in address else V4, address) for address in addresses)
    return Endpoint(text=f"{host}:{port}", host=host, port=port, addresses=found)


def test_an_endpoint_is_a_host_and_a_port() -> None:
    found = Endpoint.parse("127.0.0.1:29400")
    assert (found.host, found.port, found.addresses) == ("127.0.0.1", 29400, ((V4, "127.0.0.1"),))
    assert str(found) == "127.0.0.1:29400"


def test_an_ipv6_address_stands_in_brackets() -> None:
    found = Endpoint.parse("[::1]:29400")
    assert (found.host, found.port, found.addresses) == ("::1", 29400, ((V6, "::1"),))


def test_a_name_is_shown_with_what_it_is_here() -> None:
    assert str(endpoint_at(1, "10.0.0.1", "10.0.0.2", host="node0")) == "node0:1 (10.0.0.1, 10.0.0.2)"


@pytest.mark.parametrize(
    "text",
    ["", "node0", ":29400", "node0:", "node0:http", "node0:0", "node0:65536", "node0:-1", "node0:²", "n:" + "9" * 5000],
)
def test_what_is_no_endpoint_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(RefusedError, match=r"rdzv_endpoint is '.*'; wanted HOST:PORT, .* as node0:29400"):
        Endpoint.parse(text)


def test_a_name_that_cannot_be_resolved_is_refused_with_the_host_that_asked() -> None:
    with pytest.raises(RefusedError, match=f"'nobody.invalid' cannot be resolved on {socket.gethostname()}: "):
        Endpoint.parse("nobody.invalid:29400")


def test_only_launchers_of_one_host_meet_on_loopback() -> None:
    assert not endpoint_at(1, "127.0.0.1", "::1", host="localhost").several_hosts
    assert endpoint_at(1, "127.0.0.1", "10.0.0.1").several_hosts
    # A line of /etc/hosts for the own name says nothing of what others know.
    assert endpoint_at(1, "127.0.1.1", host="node0").several_hosts


def test_host_0_listens_at_the_endpoint_and_nowhere_else() -> None:
    found = listen(endpoint_at(0, "127.0.0.1"), must=True)
    assert found is not None
    with found[0] as listener:
        assert (found[1], listener.getsockname()[0]) == ("127.0.0.1", "127.0.0.1")


def test_an_endpoint_of_another_host_is_not_listened_at() -> None:
    # 192.0.2.0/24 is nobody's (RFC 5737).
    assert listen(endpoint_at(29400, "192.0.2.1"), must=True) is None


def test_of_several_addresses_the_one_that_is_ours_is_taken() -> None:
    found = listen(endpoint_at(0, "192.0.2.1", "127.0.0.1"), must=True)
    assert found is not None
    with found[0] as listener:
        assert listener.getsockname()[0] == "127.0.0.1"


def test_where_our_own_name_is_a_loopback_address_every_address_is_listened_at() -> None:
    found = listen(endpoint_at(0, "127.0.0.1", host="node0"), must=True)
    assert found is not None
    with found[0] as listener:
        assert (found[1], listener.getsockname()[0]) == ("", "0.0.0.0")


def test_a_port_in_use_is_named_with_its_holder_and_a_free_one_beside_it(taken: int) -> None:
    wanted = (
        rf"port {taken} is in use on \S+, held by .* \(pid {os.getpid()}\); port (\d+) is free: give it on every host"
    )
    with pytest.raises(RefusedError, match=wanted) as caught:
        listen(endpoint_at(taken, "127.0.0.1"), must=True)
    free = int(str(caught.value).partition("; port ")[2].split()[0])
    with socket.create_server(("127.0.0.1", free)):
        pass


def test_a_port_in_use_is_another_launchers_where_hosts_number_themselves(taken: int) -> None:
    assert listen(endpoint_at(taken, "127.0.0.1"), must=False) is None


def test_a_port_is_free_again_at_once() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = int(server.getsockname()[1])
        with socket.create_connection(("127.0.0.1", port)), server.accept()[0] as first:
            first.shutdown(socket.SHUT_RDWR)  # whoever closes first keeps the connection in TIME_WAIT
    found = listen(endpoint_at(port, "127.0.0.1"), must=True)
    assert found is not None
    found[0].close()


linux = pytest.mark.skipif(sys.platform != "linux", reason="interfaces are read as Linux tells them")


@linux
def test_interfaces_are_known_with_all_their_addresses() -> None:
    found = read_interfaces()
    assert set(found) == {name for _, name in socket.if_nameindex()}
    assert found["lo"][0] == "127.0.0.1"
    assert interface_of("127.0.0.1") == interface_of("::ffff:127.0.0.1") == "lo"
    assert interface_of("192.0.2.1") is None


@linux
def test_the_interface_that_leads_there_is_derived_for_both_libraries() -> None:
    both = {"GLOO_SOCKET_IFNAME": "lo", "NCCL_SOCKET_IFNAME": "lo"}
    assert interface_variables("127.0.0.1", several_hosts=False) == both
    assert interface_variables("192.0.2.1", several_hosts=True) == {}


@linux
def test_what_the_user_has_set_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NCCL_SOCKET_IFNAME", "^docker,lo")
    assert interface_variables("127.0.0.1", several_hosts=False) == {"GLOO_SOCKET_IFNAME": "lo"}


@linux
@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("GLOO_SOCKET_IFNAME", "ib9", "GLOO_SOCKET_IFNAME is 'ib9', and .* has no such interface; there are .*lo"),
        ("GLOO_SOCKET_IFNAME", "^lo", "has no such interface"),
        ("GLOO_SOCKET_IFNAME", "lo", "'lo' on .*, which reaches no other host; set it to the interface that does"),
        ("NCCL_SOCKET_IFNAME", "lo", "NCCL_SOCKET_IFNAME is 'lo' on .*, which reaches no other host"),
    ],
)
def test_an_interface_that_cannot_be_right_is_refused(
    name: str, value: str, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(RefusedError, match=says):
        check_interfaces(several_hosts=True)


@linux
@pytest.mark.parametrize("value", ["^docker,lo", "=eth0", "eth0,eth1", "eth"])
def test_nccls_own_forms_are_nccls_to_judge(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NCCL_SOCKET_IFNAME", value)
    check_interfaces(several_hosts=True)
