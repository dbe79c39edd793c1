"""The network interfaces of this host: which are up, and which lead to other hosts. Linux."""

import fcntl
import ipaddress
import socket
import struct
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from launcher.hosts import interfaces as kernel

# linux/sockios.h and linux/if.h
_SIOCGIFFLAGS = 0x8913
_IFF_UP = 0x1
_IFF_LOOPBACK = 0x8


@dataclass(frozen=True, slots=True, kw_only=True)
class Interface:
    """One interface."""

    name: str
    addresses: tuple[str, ...]
    up: bool
    loopback: bool = False

    @property
    def wide_addresses(self) -> list[str]:
        """Without those that hold on one cable only, which every interface gives itself."""
        return [address for address in self.addresses if not ipaddress.ip_address(address).is_link_local]

    def __str__(self) -> str:
        state = ", ".join(self.addresses) or "no address"
        return f"{self.name} ({state if self.up else f'down, {state}'})"


def read_interfaces() -> list[Interface]:
    """All of them, as the kernel names them; none where this is not Linux."""
    if sys.platform != "linux":
        return []
    known = kernel.read_interfaces()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        flags = {name: _flags(probe, name) for name in known}
    return [
        Interface(
            name=name,
            addresses=tuple(addresses),
            up=bool(flags[name] & _IFF_UP),
            loopback=bool(flags[name] & _IFF_LOOPBACK),
        )
        for name, addresses in known.items()
    ]


def _flags(probe: socket.socket, name: str) -> int:
    """The kernel's flags of an interface: /sys may show those of another network than this process's."""
    try:
        answer = fcntl.ioctl(probe.fileno(), _SIOCGIFFLAGS, struct.pack("256s", name.encode()[:15]))
    except OSError:
        return 0
    return int(struct.unpack_from("=H", answer, 16)[0])


def outward(interfaces: Sequence[Interface]) -> list[Interface]:
    """Those through which other hosts may be reached: what is left without loopback and containers' bridges."""
    local = ("docker", "br-", "veth", "virbr", "cni", "flannel", "cali")
    ours = [each for each in interfaces if not each.loopback and not each.name.startswith(local)]
    return [each for each in ours if each.up and each.wide_addresses]
