"""Names to addresses under a time limit; who holds a port of this host (Linux), and one that is free."""

import contextlib
import ipaddress
import socket
import threading
from pathlib import Path

RESOLVE_TIMEOUT_S = 4.0
_LISTENING = "0A"
# A family and an address in figures.
Address = tuple[socket.AddressFamily, str]


class Unresolved(Exception):
    """A host's name has no address here; the text is the reason."""


def resolve(host: str) -> Address:
    """The address of a host, or Unresolved within RESOLVE_TIMEOUT_S."""
    return resolve_all(host)[0]


def resolve_all(host: str) -> list[Address]:
    """Every address of a host, those of IPv4 first, or Unresolved: in a thread, since the resolver has no limit."""
    found: list[Address] = []
    reasons: list[str] = []

    def ask() -> None:
        try:
            answers = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
            found.extend((answer[0], str(answer[4][0])) for answer in answers)
        except (OSError, UnicodeError) as error:
            reasons.append(getattr(error, "strerror", None) or str(error))

    asker = threading.Thread(target=ask, daemon=True)
    asker.start()
    asker.join(RESOLVE_TIMEOUT_S)
    if not found:
        raise Unresolved(reasons[0] if reasons else f"no answer within {RESOLVE_TIMEOUT_S:g} s")
    # TCPStore and gloo prefer IPv4 where a name has both.
    return sorted(dict.fromkeys(found), key=lambda answer: answer[0] != socket.AF_INET)


def plain_address(text: str) -> str:
    """An address as IPv4 where it is one: a socket for both families writes ::ffff:10.0.0.1."""
    return text.removeprefix("::ffff:") if "." in text else text


def is_loopback(address: str) -> bool:
    """Whether only this host itself is reached there."""
    return ipaddress.ip_address(plain_address(address).partition("%")[0]).is_loopback


def is_own(address: Address) -> bool:
    """Whether it is an address of this host: only then can a socket have it."""
    try:
        with socket.socket(address[0], socket.SOCK_STREAM) as probe:
            probe.bind((address[1], 0))
    except OSError:
        return False
    return True


def free_port(family: socket.AddressFamily, host: str) -> int:
    """A port that nobody held at this moment."""
    with hold_port(family, host) as held:
        return int(held.getsockname()[1])


def hold_port(family: socket.AddressFamily, host: str) -> socket.socket:
    """A socket that keeps a port for one who listens there with SO_REUSEADDR, and from everybody who wants just any."""
    held = socket.socket(family, socket.SOCK_STREAM)
    held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    held.bind((host, 0))
    return held


def holder_of(port: int) -> str:
    """'held by python (pid 12)' of whoever listens on a port; '' where it cannot be told."""
    sockets = _listening_sockets(port)
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            for descriptor in (folder / "fd").iterdir():
                with contextlib.suppress(OSError):
                    if descriptor.readlink().name in sockets:
                        name = (folder / "comm").read_text(encoding="utf-8", errors="replace").strip()
                        return f"held by {name} (pid {folder.name})"
    return ""


def _listening_sockets(port: int) -> set[str]:
    """What the descriptors of sockets that listen on `port` lead to."""
    found = set()
    for name in ("tcp", "tcp6"):
        with contextlib.suppress(OSError):
            for line in Path(f"/proc/net/{name}").read_text(encoding="ascii").splitlines()[1:]:
                fields = line.split()
                if fields[3] == _LISTENING and int(fields[1].rpartition(":")[2], 16) == port:
                    found.add(f"socket:[{fields[9]}]")
    return found
