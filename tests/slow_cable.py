"""A cable between two pretend hosts on which everything takes its time, as over a continent. Run as a program:

    python tests/slow_cable.py SECONDS PID PID

joins the network namespaces of two processes by an `eth0` each, whose frames this program carries over.
"""

import collections
import ctypes
import fcntl
import os
import select
import struct
import sys
import time
from typing import IO

_SET_INTERFACE = 0x400454CA  # TUNSETIFF: the kernel makes the interface, and we are what it is plugged into
_ETHERNET_FRAMES = 0x0002 | 0x1000  # IFF_TAP, IFF_NO_PI
_NETWORK = 0x40000000  # CLONE_NEWNET
_FRAME_BYTES = 2**16


def plug_into(pid: int) -> int:
    """An interface in the network namespace of a process; its other end as a file."""
    with open("/proc/self/ns/net") as own, open(f"/proc/{pid}/ns/net") as namespace:
        enter(namespace)
        end = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
        fcntl.ioctl(end, _SET_INTERFACE, struct.pack("16sH22x", b"eth0", _ETHERNET_FRAMES))
        enter(own)
    return end


def enter(namespace: IO[str]) -> None:
    if ctypes.CDLL(None, use_errno=True).setns(namespace.fileno(), _NETWORK):
        raise OSError(ctypes.get_errno(), f"cannot enter {namespace.name}")


def carry(ends: list[int], delay_s: float) -> None:
    """Carry each frame to the other end, so much later. For ever."""
    on_the_way: collections.deque[tuple[float, int, bytes]] = collections.deque()
    while True:
        wait_s = max(0.0, on_the_way[0][0] - time.monotonic()) if on_the_way else None
        for end in select.select(ends, [], [], wait_s)[0]:
            frame = os.read(end, _FRAME_BYTES)
            on_the_way.append((time.monotonic() + delay_s, ends[1 - ends.index(end)], frame))
        while on_the_way and on_the_way[0][0] <= time.monotonic():
            _, end, frame = on_the_way.popleft()
            os.write(end, frame)


if __name__ == "__main__":
    both = [plug_into(int(word)) for word in sys.argv[2:4]]
    print("ready", flush=True)
    carry(both, float(sys.argv[1]))
