"""Check: the place where ranks of several hosts are to meet: its name, the way there, and who answers."""

import errno
import socket
import sys
from dataclasses import dataclass
from pathlib import Path

from launcher.doctor.checks import Finding, Findings, Question, bad, good, note, trying, unknown
from launcher.doctor.endpoint_text import split_endpoint
from launcher.doctor.names import Lookup, resolve
from launcher.hosts.address import interface_of
from parallel.addresses import Address, holder_of, is_loopback, is_own

_CONNECT_S = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """How packets leave for an address: from which own address, through which interface."""

    source: str
    interface: str | None


def look(question: Question) -> Findings:
    if question.endpoint is None:
        return
    host, port = split_endpoint(question.endpoint)
    yield trying("endpoint name", f"looking up {host!r}", "see /etc/resolv.conf, or give an address")
    lookup = resolve(host)
    yield resolved(host, lookup)
    if not lookup.answers:
        return
    address = lookup.addresses[0]
    own = is_own(address)
    yield _way(address, own)
    yield trying("endpoint", f"connecting to {address[1]}:{port}", "see whether a firewall stands between")
    yield _listen(address, port) if own else _connect(address[1], port)


def resolved(host: str, lookup: Lookup) -> Finding:
    """Whether the name is known here; every host must know it."""
    if lookup.answers:
        return good("endpoint name", f"{host} is {', '.join(lookup.answers[:4])}")
    remedy = "correct the name, give an address, or write it into /etc/hosts of every host"
    return bad("endpoint name", f"{host!r} cannot be resolved: {lookup.reason}", remedy)


def _way(where: Address, own: bool) -> Finding:
    """Nothing is sent: a connected socket of datagrams only chooses its way."""
    family, address = where
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect((address, 9))
            source = str(probe.getsockname()[0])
    except OSError as error:
        remedy = "bring up the interface of that network (ip link, ip route), or correct the address"
        return bad("endpoint route", f"no way to {address}: {error.strerror}", remedy)
    if is_loopback(address):
        found = f"{address} is this host's own loopback: no other host reaches it"
        return bad("endpoint route", found, "name the address of an interface that the other hosts reach")
    if own:
        return good("endpoint route", f"{address} is an address of this host: rank 0 runs here")
    name = interface_of(source) or _routed(address)
    return route(address, Way(source=source, interface=name))


def route(address: str, way: Way) -> Finding:
    """Which interface gloo and NCCL should take."""
    if way.interface is None:
        return note("endpoint route", f"to {address} from {way.source}; its interface is not known")
    return good(
        "endpoint route",
        f"to {address} through {way.interface}, from {way.source} (GLOO_SOCKET_IFNAME={way.interface} "
        f"NCCL_SOCKET_IFNAME={way.interface} choose it)",
    )


def _routed(address: str) -> str | None:
    try:
        return interface_towards(Path("/proc/net/route").read_text(encoding="ascii"), address)
    except OSError:
        return None


def interface_towards(routes: str, address: str) -> str | None:
    """The interface of the narrowest route to an IPv4 address, of /proc/net/route."""
    if ":" in address:
        return None
    wanted = int.from_bytes(socket.inet_aton(address), sys.byteorder)
    rows = [line.split() for line in routes.splitlines()[1:]]
    fitting = [
        (int(row[7], 16).bit_count(), row[0])
        for row in rows
        if len(row) > 7 and wanted & int(row[7], 16) == int(row[1], 16)
    ]
    return max(fitting)[1] if fitting else None


def _connect(address: str, port: int) -> Finding:
    try:
        with socket.create_connection((address, port), timeout=_CONNECT_S):
            return good("endpoint", f"{address}:{port} answers")
    except OSError as error:
        return unanswered(f"{address}:{port}", error)


def unanswered(where: str, error: OSError) -> Finding:
    """Why nobody could be spoken to."""
    if isinstance(error, ConnectionRefusedError):
        found = f"the host is there, but nobody listens at {where} yet"
        return unknown("endpoint", found, "start rank 0 (or the first node) there, then ask again")
    if isinstance(error, TimeoutError) or error.errno == errno.ETIMEDOUT:
        found = f"{where} does not answer within {_CONNECT_S:g} s"
        return bad(
            "endpoint", found, "see whether that host is up and no firewall stands between (every host, the port)"
        )
    return bad("endpoint", f"{where} cannot be reached: {error.strerror}", "see whether that host is up (ping)")


def _listen(where: Address, port: int) -> Finding:
    """On the host of rank 0: whether the port is free there."""
    family, address = where
    try:
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((address, port))
            probe.listen(1)
    except OSError as error:
        holder = holder_of(port) if error.errno == errno.EADDRINUSE else ""
        return bad(
            "endpoint",
            f"rank 0 cannot listen at {address}:{port}: {error.strerror}{f', {holder}' if holder else ''}",
            "end that process if it is a forgotten run, or choose another port (1024 to 32767)",
        )
    return good("endpoint", f"rank 0 can listen at {address}:{port}")
