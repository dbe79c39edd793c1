"""The network interfaces of this host and their addresses, as the kernel tells them (rtnetlink(7)). Linux."""

import socket
import struct
from collections.abc import Iterator

_GET_ADDRESSES, _ADDRESS, _DONE, _FAILED = 22, 20, 3, 2
_REQUEST_ALL = 0x301
# Of an address: the one at the other end where there is one, and this host's.
_IFA_ADDRESS, _IFA_LOCAL = 1, 2
_HEADER = struct.Struct("=IHHII")
_ABOUT = struct.Struct("=BBBBI")
_ATTRIBUTE = struct.Struct("=HH")


def read_interfaces() -> dict[str, list[str]]:
    """The addresses of each interface, IPv4 first; none for one that has none, and none at all where it is not told."""
    found: dict[str, list[str]] = {name: [] for _, name in socket.if_nameindex()}
    names = dict(socket.if_nameindex())
    try:
        for number, address in _addresses():
            if number in names:
                found[names[number]].append(address)
    except OSError:
        pass  # a container that is not allowed to ask
    return {name: sorted(addresses, key=lambda address: ":" in address) for name, addresses in found.items()}


def _addresses() -> Iterator[tuple[int, str]]:
    """Number of an interface, and an address of it."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0) as asker:
        asker.settimeout(1.0)
        question = _ABOUT.pack(socket.AF_UNSPEC, 0, 0, 0, 0)
        asker.send(_HEADER.pack(_HEADER.size + len(question), _GET_ADDRESSES, _REQUEST_ALL, 1, 0) + question)
        while True:
            data = asker.recv(2**16)
            while data:
                length, kind, *_ = _HEADER.unpack_from(data)
                if kind in (_DONE, _FAILED):
                    return
                if kind == _ADDRESS:
                    yield from _read(data[_HEADER.size : length])
                data = data[_aligned(length) :]


def _read(message: bytes) -> Iterator[tuple[int, str]]:
    family, _, _, _, number = _ABOUT.unpack_from(message)
    given: dict[int, bytes] = {}
    rest = message[_ABOUT.size :]
    while len(rest) >= _ATTRIBUTE.size:
        length, kind = _ATTRIBUTE.unpack_from(rest)
        given[kind] = rest[_ATTRIBUTE.size : length]
        rest = rest[max(_aligned(length), _ATTRIBUTE.size) :]
    packed = given.get(_IFA_LOCAL) or given.get(_IFA_ADDRESS)
    if packed and family in (socket.AF_INET, socket.AF_INET6):
        yield number, socket.inet_ntop(family, packed)


def _aligned(length: int) -> int:
    return (length + 3) & ~3
