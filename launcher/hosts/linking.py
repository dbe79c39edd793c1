"""Which side of the link this host is on, and how the other hosts hear of it when it cannot take part."""

import contextlib
from dataclasses import replace

from launcher.hosts.address import Endpoint, check_interfaces, listen, own_addresses
from launcher.hosts.calling import Unreached, call
from launcher.hosts.head import Head
from launcher.hosts.hello import Hello
from launcher.hosts.meeting import check_place, turn_all_away
from launcher.hosts.member import Member
from launcher.settings.options import ParallelSection
from parallel.errors import RefusedError

# For the other hosts to be told why this one does not take part.
_TELL_S = 3.0


def open_link(parallel: ParallelSection, ranks: int) -> Head | Member:
    """Meet the launchers of the other hosts. RefusedError, on every host that was reached, where the run cannot be."""
    endpoint = check_place(parallel)
    own = Hello.of(parallel, ranks)
    try:
        check_interfaces(endpoint.several_hosts)
    except RefusedError as error:
        _tell_others(endpoint, own, str(error))
        raise
    found = listen(endpoint, must=own.node_rank == 0) if own.node_rank <= 0 else None
    if found is not None:
        listener, address = found
        return Head(listener, address, replace(own, node_rank=0), endpoint, parallel.join_timeout_s)
    if own.node_rank == 0:
        raise _misplaced(endpoint, own)
    return Member(own, endpoint, parallel.join_timeout_s)


def refuse_on_all_hosts(parallel: ParallelSection, ranks: int, reason: str) -> None:
    """Tell the launchers of the other hosts, if there are any, why this one does not take part; within seconds."""
    # What is wrong with the settings of the meeting itself each host says itself.
    with contextlib.suppress(RefusedError):
        if parallel.nnodes > 1:
            _tell_others(check_place(parallel), Hello.of(parallel, ranks), reason)


def _tell_others(endpoint: Endpoint, own: Hello, reason: str) -> None:
    with contextlib.suppress(RefusedError):
        found = listen(endpoint, must=own.node_rank == 0) if own.node_rank <= 0 else None
        if found is None:
            call(endpoint, own, _TELL_S, reason).close()
            return
        with found[0] as listener:
            turn_all_away(listener, replace(own, node_rank=0), reason, _TELL_S)


def _misplaced(endpoint: Endpoint, own: Hello) -> RefusedError:
    """Why a host that is said to be host 0 is not: the endpoint is another's. If host 0 is there, it hears of it."""
    try:
        call(endpoint, own, 1.0).close()
    except Unreached:
        pass
    except RefusedError as error:
        if not str(error).startswith("what listens at"):  # somebody else's host
            return error
    return RefusedError(
        f"node_rank is 0 here, but rdzv_endpoint {endpoint} is not an address of host {own.host}, which has "
        f"{own_addresses()}; give the endpoint of host 0 on every host, and each host a node_rank of its own"
    )
