"""Where hosts meet: an endpoint's addresses, whether one is this host's, and which interface leads there."""

import contextlib
import errno
import os
import socket
import sys
from dataclasses import dataclass

from launcher.hosts.interfaces import read_interfaces
from launcher.ranks.host import host_name
from parallel.addresses import (
    Address,
    Unresolved,
    free_port,
    holder_of,
    is_loopback,
    is_own,
    plain_address,
    resolve_all,
)
from parallel.errors import RefusedError

# What names the interface that collectives use, and who reads it.
INTERFACE_VARIABLES = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")
# Every address of this host; of both families where the name has both.
_ANY = {socket.AF_INET: "0.0.0.0", socket.AF_INET6: "::"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """HOST:PORT, resolved."""

    text: str
    host: str
    port: int
    # Of both families, those of IPv4 first.
    addresses: tuple[Address, ...]

    @classmethod
    def parse(cls, text: str) -> "Endpoint":
        """Read and resolve HOST:PORT. RefusedError within 5 seconds."""
        host, _, port = text.rpartition(":")
        host = host[1:-1] if host.startswith("[") and host.endswith("]") else host
        number = int(port) if port.isascii() and port.isdecimal() and len(port) < 6 else 0
        if not host or "/" in host or not 0 < number < 65536:
            raise RefusedError(
                f"rdzv_endpoint is {text!r}; wanted HOST:PORT, the name or address of host 0 and a port that is free "
                "there, as node0:29400 or [fd00::1]:29400"
            )
        try:
            addresses = resolve_all(host)
        except Unresolved as reason:
            raise RefusedError(
                f"rdzv_endpoint: {host!r} cannot be resolved on {host_name()}: {reason}; give the name or "
                "address of host 0 as this host knows it"
            ) from None
        return cls(text=text, host=host, port=int(port), addresses=tuple(addresses))

    def __str__(self) -> str:
        """'hA:29400 (10.0.0.1)': as it was given, and what that is here."""
        shown = ", ".join(address for _, address in self.addresses[:4])
        return self.text if shown == self.host else f"{self.text} ({shown})"

    @property
    def several_hosts(self) -> bool:
        """False where only launchers of this one host can meet: to try things out."""
        return not all(is_loopback(address) for _, address in self.addresses) or self.of_own_name

    @property
    def of_own_name(self) -> bool:
        """Whether a line of /etc/hosts makes a name that others know too a loopback address here (Debian does)."""
        named = not self.host.startswith("localhost") and self.host not in {address for _, address in self.addresses}
        return named and all(is_loopback(address) for _, address in self.addresses)


def interface_of(address: str) -> str | None:
    """The interface that has this address; None where it cannot be told."""
    plain = plain_address(address)
    return next((name for name, known in read_interfaces().items() if plain in known), None)


def interface_variables(address: str, several_hosts: bool) -> dict[str, str]:
    """GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME for collectives by way of `address`, where the user has not set them.

    RefusedError where one names an interface that is not there, or that reaches no other host.
    """
    if sys.platform != "linux":
        return {}
    check_interfaces(several_hosts)
    name = interface_of(address)
    if name is None:
        return {}
    return {variable: name for variable in INTERFACE_VARIABLES if not os.environ.get(variable)}


def check_interfaces(several_hosts: bool) -> None:
    """Refuse what the user has set, where it names an interface that is not there, or that reaches no other host."""
    known = read_interfaces() if sys.platform == "linux" else {}
    for variable in INTERFACE_VARIABLES:
        _check_interface(variable, os.environ.get(variable, ""), known, several_hosts)


def _check_interface(variable: str, given: str, known: dict[str, list[str]], several_hosts: bool) -> None:
    # NCCL's own forms, as ^docker,lo or =eth0, are NCCL's to judge.
    if not given or not known:
        return
    if variable.startswith("NCCL") and (given[0] in "^=" or "," in given or given not in known):
        return
    if given not in known:
        raise RefusedError(
            f"{variable} is {given!r}, and {host_name()} has no such interface; there are "
            f"{', '.join(sorted(known))}; set it to one of them on this host, or unset it"
        )
    if several_hosts and known[given] and all(is_loopback(address) for address in known[given]):
        raise RefusedError(
            f"{variable} is {given!r} on {host_name()}, which reaches no other host; set it to the interface "
            "that does, or unset it"
        )


def listen(endpoint: Endpoint, must: bool) -> tuple[socket.socket, str] | None:
    """Listen at the endpoint; the socket and its address ('': any of this host's, it is seen when somebody comes).

    None where the endpoint is another host's, and where another launcher of this host was first but for `must`.
    """
    place = _place(endpoint)
    if place is None:
        return None
    family, address = place
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            # `::` takes those who come by IPv4 too.
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        listener.bind((address, endpoint.port))
        listener.listen(1024)
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE and not must:
            return None
        raise RefusedError(_why_not(endpoint, place, error)) from None
    return listener, "" if address in _ANY.values() else address


def _place(endpoint: Endpoint) -> Address | None:
    """The address to listen at; None where the endpoint is another host's."""
    own = [address for address in endpoint.addresses if is_own(address)]
    outward = [address for address in own if not is_loopback(address[1])]
    if len(outward) == 1:
        return outward[0]
    if not own or (not outward and not endpoint.of_own_name):
        return own[0] if own else None
    # Others may come to any of several addresses, and know a real one where we know a loopback address.
    family = socket.AF_INET6 if any(each[0] == socket.AF_INET6 for each in own) else socket.AF_INET
    return family, _ANY[family]


def _why_not(endpoint: Endpoint, place: Address, error: OSError) -> str:
    if error.errno == errno.EADDRINUSE:
        holder = holder_of(endpoint.port)
        return (
            f"rdzv_endpoint {endpoint.text}: port {endpoint.port} is in use on {host_name()}"
            f"{f', {holder}' if holder else ''}; port {_next_port(place, endpoint.port)} is free: give it on every host"
        )
    return f"node 0 cannot listen at rdzv_endpoint {endpoint.text}: {error.strerror} ({place[1]} on {host_name()})"


def _next_port(place: Address, port: int) -> int:
    """A free port near one that is taken: those that the system gives out may be taken again before they are used."""
    for other in range(port + 1, min(port + 100, 2**16)):
        with socket.socket(place[0], socket.SOCK_STREAM) as probe, contextlib.suppress(OSError):
            probe.bind((place[1], other))
            return other
    return free_port(*place)


def own_addresses() -> str:
    """'10.0.0.1 (eth0), fd00::1 (eth0)': where other hosts may find this one."""
    return ", ".join(
        f"{address} ({name})"
        for name, known in read_interfaces().items()
        for address in known
        if not is_loopback(address) and not address.startswith("fe80:")
    )
