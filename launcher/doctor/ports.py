"""Check: that ranks can listen, and that torchrun's usual port is free."""

import errno
import socket
from collections.abc import Sequence

from launcher.doctor.checks import Finding, Findings, Question, bad, good, note, unknown
from launcher.doctor.interfaces import Interface, outward, read_interfaces
from parallel.addresses import holder_of

# torchrun's, and so everybody's.
USUAL_PORT = 29500


def look(_question: Question) -> Findings:
    yield connected("127.0.0.1", "loopback", "ip link set lo up; let the firewall pass what goes over lo")
    yield _outside(read_interfaces())
    yield usual_port(_in_use(USUAL_PORT), holder_of(USUAL_PORT))


def connected(address: str, where: str, remedy: str) -> Finding:
    """Listen at an address, and connect to it from here."""
    name = f"listening ({where})"
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as listener:
            listener.bind((address, 0))
            listener.listen(1)
            with socket.create_connection(listener.getsockname(), timeout=2.0):
                return good(name, f"a rank can listen at {address} and be reached there")
    except OSError as error:
        return bad(name, f"at {address} it fails: {error.strerror or error}", remedy)


def _outside(interfaces: Sequence[Interface]) -> Finding:
    addresses = [address for each in outward(interfaces) for address in each.wide_addresses if ":" not in address]
    if not addresses:
        return note("listening (own)", "there is no interface to other hosts: one host only")
    return connected(addresses[0], "own", f"let the firewall pass connections to {addresses[0]}")


def _in_use(port: int) -> bool | None:
    """Whether somebody listens there; None where that cannot be said."""
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
            # As torchrun's store does it; what lingers of a connection that has ended does not matter to it.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("0.0.0.0", port))
            probe.listen(1)
    except OSError as error:
        return True if error.errno == errno.EADDRINUSE else None
    return False


def usual_port(in_use: bool | None, holder: str) -> Finding:
    """torchrun fails where its port is taken, or joins what a forgotten torchrun has left there."""
    name = f"port {USUAL_PORT}"
    if in_use is None:
        return unknown(name, "nobody may listen there, it seems", "give torchrun another: --master-port PORT")
    if not in_use:
        return good(name, "free (torchrun's usual port)")
    return bad(
        name,
        f"torchrun's usual port is in use, {holder or 'by a process that cannot be seen from here'}",
        "end that process if it is a forgotten run, or give torchrun another port: --master-port PORT, or "
        "--standalone; `shardrun --nproc_per_node` needs none",
    )
