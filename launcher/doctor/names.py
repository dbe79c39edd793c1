"""Check: the network interfaces, the host's own name both ways, and the variables that choose an interface."""

import os
import socket
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from launcher.doctor.asking import NoAnswerError, within
from launcher.doctor.checks import Finding, Findings, Question, bad, good, note, trying, unknown
from launcher.doctor.interfaces import Interface, outward, read_interfaces
from parallel.addresses import RESOLVE_TIMEOUT_S, Address, Unresolved, is_loopback, is_own, resolve_all

# torchrun and the store ask for names several times as they start.
_SLOW_S = 1.0
_SHOWN = 8
_RESOLVER = "see /etc/resolv.conf and /etc/nsswitch.conf; a line in /etc/hosts needs no server"


@dataclass(frozen=True, slots=True, kw_only=True)
class Lookup:
    """What came of asking for a name. `reason`: why there is no answer."""

    addresses: Sequence[Address] = ()
    names: Sequence[str] = ()
    reason: str = ""
    seconds: float = 0.0

    @property
    def answers(self) -> list[str]:
        return [text for _, text in self.addresses] or list(self.names)


def look(question: Question) -> Findings:
    interfaces = read_interfaces()
    yield listed(interfaces)
    chosen = os.environ.get("GLOO_SOCKET_IFNAME")
    yield from gloo_choice(chosen, interfaces)
    yield from nccl_choice(os.environ.get("NCCL_SOCKET_IFNAME"), interfaces)
    name = socket.gethostname()
    yield trying("host name", f"looking up {name!r}", _RESOLVER)
    forward = resolve(name)
    own = [text for family, text in forward.addresses if is_own((family, text))]
    yield named(name, forward, own, interfaces, chosen, question.endpoint is not None)
    address = next(iter(own or forward.answers), None)
    if address is not None:
        yield trying("reverse name", f"looking up {address}", _RESOLVER)
        yield reversed_name(address, reverse(address))


def resolve(name: str) -> Lookup:
    """The addresses of a name, those of IPv4 first."""
    started = time.monotonic()
    try:
        return Lookup(addresses=resolve_all(name), seconds=time.monotonic() - started)
    except Unresolved as reason:
        return Lookup(reason=str(reason), seconds=time.monotonic() - started)


def reverse(address: str) -> Lookup:
    """The name of an address."""
    started = time.monotonic()
    try:
        name = within(RESOLVE_TIMEOUT_S, lambda: socket.gethostbyaddr(address)[0])
        return Lookup(names=[name], seconds=time.monotonic() - started)
    except NoAnswerError:
        return Lookup(reason=f"no answer within {RESOLVE_TIMEOUT_S:g} s", seconds=RESOLVE_TIMEOUT_S)
    except OSError as error:
        return Lookup(reason=error.strerror or str(error), seconds=time.monotonic() - started)


def listed(interfaces: Sequence[Interface]) -> Finding:
    """What there is; loopback must be up, since ranks of one host meet there."""
    if not interfaces:
        return unknown("interfaces", "they are known on Linux only")
    # A host of containers has hundreds.
    first = sorted(interfaces, key=lambda each: (not each.loopback, each not in outward(interfaces)))[:_SHOWN]
    found = ", ".join(map(str, first))
    if len(interfaces) > _SHOWN:
        found += f", and {len(interfaces) - _SHOWN} more"
    if not any(each.loopback and each.up for each in interfaces):
        return bad("interfaces", f"the loopback interface is not up: {found}", "ip link set lo up")
    return good("interfaces", found)


def gloo_choice(chosen: str | None, interfaces: Sequence[Interface]) -> Iterator[Finding]:
    """GLOO_SOCKET_IFNAME is one name of an interface, or several with commas between; no patterns."""
    for name in (chosen or "").split(",") if chosen else []:
        yield _choice(
            "GLOO_SOCKET_IFNAME", chosen or "", [each for each in interfaces if each.name == name], interfaces
        )


def nccl_choice(chosen: str | None, interfaces: Sequence[Interface]) -> Iterator[Finding]:
    """NCCL_SOCKET_IFNAME is a list of beginnings of names; after ^ of those not to take, after = of whole names."""
    if not chosen:
        return
    names = chosen.lstrip("^=").split(",")
    whole = chosen.lstrip("^").startswith("=")
    matching = [each for each in interfaces if (each.name in names if whole else each.name.startswith(tuple(names)))]
    if chosen.startswith("^"):
        matching = [each for each in interfaces if each not in matching]
    yield _choice("NCCL_SOCKET_IFNAME", chosen, matching, interfaces)


def _choice(variable: str, chosen: str, matching: Sequence[Interface], interfaces: Sequence[Interface]) -> Finding:
    if not matching:
        there = ", ".join(each.name for each in interfaces)
        return bad(variable, f"is {chosen!r}, and no such interface is here", f"unset it, or choose one of {there}")
    if not any(each.up for each in matching):
        return bad(variable, f"is {chosen!r}, which is down", f"ip link set {matching[0].name} up, or choose another")
    return good(variable, f"is {chosen!r}: {', '.join(map(str, matching))}")


def named(
    name: str,
    forward: Lookup,
    own: Sequence[str],
    interfaces: Sequence[Interface],
    chosen: str | None,
    several_hosts: bool,
) -> Finding:
    """Where gloo would listen: at the address of the host's name, unless a variable chooses an interface."""
    found = f"{name!r} is {', '.join(forward.answers[:4])}" if forward.answers else f"{name!r}: {forward.reason}"
    reachable = [address for address in own if not is_loopback(address)]
    if forward.seconds > _SLOW_S:
        after = f", after {forward.seconds:.1f} s" if forward.answers else ""
        return bad("host name", f"{found}{after}: each start waits for it", _RESOLVER)
    if reachable or chosen:
        return good("host name", found if reachable else f"{found}; GLOO_SOCKET_IFNAME={chosen} is taken instead")
    others = outward(interfaces)
    if not others:
        return note("host name", f"{found}; there is no interface to other hosts")
    word = bad if several_hosts else unknown
    return word("host name", f"{found}: {_why(forward, own)}", _name_remedy(name, others))


def _why(forward: Lookup, own: Sequence[str]) -> str:
    if not forward.answers:
        return "no harm on one host; over several gloo has no address to listen at"
    if own:
        return "no harm on one host; over several gloo listens where no other host reaches it (Debian writes 127.0.1.1)"
    return "which this host does not have: over several hosts gloo cannot listen there"


def _name_remedy(name: str, others: Sequence[Interface]) -> str:
    line = f"{others[0].wide_addresses[0]} {name}"
    return f"for several hosts export GLOO_SOCKET_IFNAME={others[0].name}, or let /etc/hosts say '{line}' instead"


def reversed_name(address: str, lookup: Lookup) -> Finding:
    """A slow answer delays every start; having none does not matter."""
    found = f"{address} is {lookup.answers[0]}" if lookup.answers else f"{address} has no name: {lookup.reason}"
    if lookup.seconds > _SLOW_S:
        return bad(
            "reverse name",
            f"{found}, after {lookup.seconds:.1f} s: each start waits for it",
            f"write a line for {address} into /etc/hosts, or mend the resolver (/etc/resolv.conf)",
        )
    return good("reverse name", f"{found}, after {lookup.seconds * 1e3:.0f} ms")
