"""Interfaces, names, ports and endpoints: what is said of a healthy host and of sick ones."""

import errno
import socket

import pytest

from launcher.doctor.endpoint import interface_towards, resolved, unanswered
from launcher.doctor.endpoint_text import split_endpoint
from launcher.doctor.interfaces import Interface, outward, read_interfaces
from launcher.doctor.names import Lookup, gloo_choice, listed, named, nccl_choice, reversed_name
from launcher.doctor.ports import connected, usual_port
from parallel.errors import RefusedError

LO = Interface(name="lo", addresses=("127.0.0.1", "::1"), up=True, loopback=True)
ETH = Interface(name="eth0", addresses=("10.0.0.5",), up=True)
DOWN = Interface(name="ib0", addresses=(), up=False)
CABLE = Interface(name="eth1", addresses=("169.254.3.3", "fe80::7"), up=True)
DOCKER = Interface(name="docker0", addresses=("172.17.0.1",), up=True)
ALL = [LO, CABLE, ETH, DOWN, DOCKER]

# As a little-endian machine writes it.
ROUTES = """\
Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT
eth0\t00000000\t0100000A\t0003\t0\t0\t0\t00000000\t0\t0\t0
ib0\t0000A8C0\t00000000\t0001\t0\t0\t0\t0000FFFF\t0\t0\t0
"""


def test_this_hosts_interfaces_are_read_with_loopback_among_them() -> None:
    loopback = next(each for each in read_interfaces() if each.loopback)
    assert (loopback.name, loopback.up) == ("lo", True)
    assert "127.0.0.1" in loopback.addresses


def test_only_interfaces_to_other_hosts_lead_outward() -> None:
    assert outward(ALL) == [ETH]


def test_a_loopback_that_is_down_is_bad() -> None:
    assert listed(ALL).verdict == "good"
    down = Interface(name="lo", addresses=(), up=False, loopback=True)
    assert (listed([down, ETH]).verdict, listed([down, ETH]).remedy) == ("bad", "ip link set lo up")


@pytest.mark.parametrize(
    ("chosen", "verdicts"),
    [(None, []), ("eth0", ["good"]), ("eth9", ["bad"]), ("ib0", ["bad"]), ("^lo,docker", ["bad", "bad"])],
)
def test_gloos_interface_must_exist_and_be_up(chosen: str | None, verdicts: list[str]) -> None:
    assert [finding.verdict for finding in gloo_choice(chosen, ALL)] == verdicts


@pytest.mark.parametrize(
    ("chosen", "verdicts"),
    [
        ("eth", ["good"]),
        ("=eth", ["bad"]),
        ("=eth0", ["good"]),
        ("^lo,docker", ["good"]),
        ("^lo,docker,eth", ["bad"]),
        ("wlan", ["bad"]),
        (None, []),
    ],
)
def test_nccls_interface_is_a_pattern(chosen: str | None, verdicts: list[str]) -> None:
    assert [finding.verdict for finding in nccl_choice(chosen, ALL)] == verdicts


FINE = Lookup(addresses=((socket.AF_INET, "10.0.0.5"),), seconds=0.01)
DEBIAN = Lookup(addresses=((socket.AF_INET, "127.0.1.1"),), seconds=0.01)
NONE = Lookup(reason="Name or service not known", seconds=0.01)
STALE = Lookup(addresses=((socket.AF_INET, "10.9.9.9"),), seconds=0.01)


@pytest.mark.parametrize(
    ("lookup", "own", "chosen", "several", "verdict"),
    [
        (FINE, ["10.0.0.5"], None, True, "good"),
        (DEBIAN, ["127.0.1.1"], None, True, "bad"),
        (DEBIAN, ["127.0.1.1"], None, False, "unknown"),
        (DEBIAN, ["127.0.1.1"], "eth0", True, "good"),
        (NONE, [], None, True, "bad"),
        (NONE, [], None, False, "unknown"),
        (STALE, [], None, True, "bad"),
    ],
)
def test_a_name_that_is_no_address_of_an_interface_is_bad_for_several_hosts(
    lookup: Lookup, own: list[str], chosen: str | None, several: bool, verdict: str
) -> None:
    finding = named("node1", lookup, own, ALL, chosen, several)
    assert finding.verdict == verdict
    if verdict in ("bad", "unknown"):
        assert "GLOO_SOCKET_IFNAME=eth0" in finding.remedy
        assert "'10.0.0.5 node1'" in finding.remedy


def test_a_host_without_other_interfaces_is_only_told() -> None:
    assert named("node1", DEBIAN, ["127.0.1.1"], [LO], None, True).verdict == "note"


def test_slow_names_are_bad_both_ways() -> None:
    slow = Lookup(addresses=((socket.AF_INET, "10.0.0.5"),), seconds=4.2)
    finding = named("node1", slow, ["10.0.0.5"], ALL, None, False)
    assert (finding.verdict, "after 4.2 s" in finding.found) == ("bad", True)
    assert reversed_name("10.0.0.5", Lookup(names=("node1",), seconds=3.0)).verdict == "bad"
    assert reversed_name("10.0.0.5", Lookup(reason="Unknown host", seconds=0.2)).verdict == "good"


def test_a_usual_port_that_is_taken_is_bad_with_its_holder() -> None:
    finding = usual_port(True, "held by python (pid 7)")
    assert finding.verdict == "bad"
    assert "in use, held by python (pid 7)" in finding.found
    assert usual_port(False, "").verdict == "good"
    assert usual_port(None, "").verdict == "unknown"


def test_listening_where_this_host_is_not_fails_with_the_reason() -> None:
    assert connected("127.0.0.1", "loopback", "").verdict == "good"
    finding = connected("192.0.2.200", "own", "do this")
    assert (finding.verdict, finding.remedy) == ("bad", "do this")
    assert "Cannot assign requested address" in finding.found


@pytest.mark.parametrize(
    ("text", "parts"),
    [("node1:29500", ("node1", 29500)), ("10.0.0.1:80", ("10.0.0.1", 80)), ("[fd00::1]:9", ("fd00::1", 9))],
)
def test_endpoints_are_taken_apart(text: str, parts: tuple[str, int]) -> None:
    assert split_endpoint(text) == parts


@pytest.mark.parametrize("text", ["node1", "node1:", ":29500", "node1:0", "node1:65536", "fd00::1:9", "a:b:c", "[x:9"])
def test_other_endpoints_are_refused(text: str) -> None:
    with pytest.raises(RefusedError, match="wanted HOST:PORT, as node1:29500"):
        split_endpoint(text)


@pytest.mark.parametrize(
    ("address", "name"), [("8.8.8.8", "eth0"), ("192.168.7.7", "ib0"), ("192.169.0.1", "eth0"), ("fd00::1", None)]
)
def test_the_narrowest_route_gives_the_interface(address: str, name: str | None) -> None:
    assert interface_towards(ROUTES, address) == name
    assert interface_towards("", address) is None


@pytest.mark.parametrize(
    ("error", "verdict", "says"),
    [
        (ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused"), "unknown", "nobody listens at n:1 yet"),
        (TimeoutError("timed out"), "bad", "does not answer within 5 s"),
        (OSError(errno.EHOSTUNREACH, "No route to host"), "bad", "No route to host"),
    ],
)
def test_each_way_of_not_answering_has_its_own_words(error: OSError, verdict: str, says: str) -> None:
    finding = unanswered("n:1", error)
    assert (finding.verdict, says in finding.found) == (verdict, True)


def test_an_endpoint_that_cannot_be_resolved_is_bad() -> None:
    assert resolved("nowhere", NONE).found == "'nowhere' cannot be resolved: Name or service not known"
    assert resolved("node1", FINE).verdict == "good"
