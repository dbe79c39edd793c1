"""How the ranks of one run meet: a store that all can reach, and a roll call.

torch's own env:// waits half an hour for a peer that never comes and retries a wrong address for
longer. Here each step has a limit in seconds, and its failure is a sentence.
"""

import errno
import socket
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

from torch._C._distributed_c10d import FileStore, PrefixStore, Store, TCPStore

from parallel.addresses import Unresolved, free_port, holder_of, resolve
from parallel.environment import RENDEZVOUS_FILE, Environment
from parallel.errors import AbsentError, RefusedError, UnreachedError
from parallel.position import position

# For a peer that has not come: it may still be importing torch from a slow disk.
PEER_TIMEOUT_S = 30.0
_POLL_S = 0.005


def open_store(env: Environment, timeout_s: float = PEER_TIMEOUT_S) -> Store:
    """A store shared by all ranks of `env`, each of which must call this. RefusedError says who is missing."""
    limit = timedelta(seconds=max(timeout_s, 1.0))
    if env.rendezvous_file:
        store: Store = _open_file(env)
    elif env.rank == 0 and not env.agent_store:
        store = _serve(env, limit)
    else:
        store = _connect(env, timeout_s)
    # A restart under torchrun meets under other keys than the attempt before.
    store = PrefixStore(f"shardrun/{env.attempt}", store)
    with position.waits_in("the other ranks to come"):
        _roll_call(env, store, timeout_s)
    return store


def _open_file(env: Environment) -> Store:
    folder = Path(env.rendezvous_file).parent
    if not folder.is_dir():
        # FileStore would wait five minutes for the folder to come.
        raise RefusedError(f"{RENDEZVOUS_FILE} is {env.rendezvous_file!r}, but the folder {folder} does not exist")
    return FileStore(env.rendezvous_file, env.world_size)


def _serve(env: Environment, limit: timedelta) -> Store:
    """Rank 0 holds the store, on MASTER_ADDR alone and not on every interface."""
    where = f"{env.master_addr}:{env.master_port}"
    family, address = _resolve(env)
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(address)
        listener.listen(1024)
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            holder = holder_of(env.master_port)
            raise RefusedError(
                f"MASTER_PORT {env.master_port} on {env.master_addr} is in use{f', {holder}' if holder else ''}; port "
                f"{free_port(family, address[0])} is free: set MASTER_PORT to it on every rank"
            ) from None
        raise RefusedError(
            f"rank 0 cannot listen on {where} (MASTER_ADDR:MASTER_PORT): {error.strerror}; "
            "MASTER_ADDR must be an address of the host that runs rank 0"
        ) from None
    return TCPStore(
        env.master_addr,
        env.master_port,
        env.world_size,
        is_master=True,
        timeout=limit,
        wait_for_workers=False,
        master_listen_fd=listener.detach(),
    )


def _connect(env: Environment, timeout_s: float) -> Store:
    family, address = _resolve(env)
    deadline = time.monotonic() + timeout_s
    while True:
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.settimeout(max(0.1, min(2.0, deadline - time.monotonic())))
            try:
                probe.connect(address)
                break
            except OSError as error:
                if time.monotonic() >= deadline:
                    raise UnreachedError(
                        f"rank {env.rank} cannot reach rank 0 at {env.master_addr}:{env.master_port} "
                        f"(MASTER_ADDR:MASTER_PORT) after {timeout_s:g} s: {error.strerror or error}; "
                        "start rank 0 there, or correct the address"
                    ) from None
        time.sleep(0.1)
    return _join_store(env, max(1.0, deadline - time.monotonic()))


def _join_store(env: Environment, timeout_s: float) -> Store:
    """A client of rank 0's store. In a thread, since TCPStore heeds no time limit where somebody else listens."""
    stores: list[Store] = []
    reasons: list[str] = []

    def join() -> None:
        limit = timedelta(seconds=timeout_s)
        try:
            stores.append(
                TCPStore(
                    env.master_addr,
                    env.master_port,
                    env.world_size,
                    is_master=False,
                    timeout=limit,
                    wait_for_workers=False,
                )
            )
        except Exception as error:  # torch's errors of the network are of several kinds
            reasons.append(str(error).partition("\n")[0][:200])

    joiner = threading.Thread(target=join, daemon=True)
    joiner.start()
    joiner.join(timeout_s)
    if not stores:
        raise UnreachedError(
            f"what listens at {env.master_addr}:{env.master_port} (MASTER_ADDR:MASTER_PORT) is not rank 0's store "
            f"({reasons[0] if reasons else f'no answer within {timeout_s:.0f} s'}); see whether rank 0 runs there, or "
            "choose another MASTER_PORT"
        )
    return stores[0]


def _resolve(env: Environment) -> tuple[socket.AddressFamily, tuple[str, int]]:
    try:
        family, address = resolve(env.master_addr)
    except Unresolved as reason:
        # Another host's resolver may know the name, so each rank speaks for itself.
        raise UnreachedError(
            f"MASTER_ADDR {env.master_addr!r} cannot be resolved: {reason}; set it to the name or address of "
            "the host that runs rank 0"
        ) from None
    return family, (address, env.master_port)


def _roll_call(env: Environment, store: Store, timeout_s: float) -> None:
    store.set(f"here/{env.rank}", "1")
    deadline = time.monotonic() + timeout_s
    missing = [rank for rank in range(env.world_size) if rank != env.rank]
    while missing:
        missing = [rank for rank in missing if not store.check([f"here/{rank}"])]
        if missing and time.monotonic() > deadline:
            shown = ", ".join(map(str, missing[:16])) + (", ..." if len(missing) > 16 else "")
            # Rank 0 speaks for all; where it is the one that is missing, the first of those that came does.
            speaks = 0 in missing and env.rank == min(set(range(env.world_size)) - set(missing))
            raise (UnreachedError if speaks else AbsentError)(
                f"rank{'s' if len(missing) > 1 else ''} {shown} of {env.world_size} did not come within "
                f"{timeout_s:g} s; see whether each was started, with the same MASTER_ADDR and MASTER_PORT"
            )
        if missing:
            time.sleep(_POLL_S)


def wait_for(store: Store, key: str, timeout_s: float, still_wanted: Callable[[], bool] = lambda: True) -> bytes | None:
    """The value of `key` as soon as it is there; None after the limit or once it is no longer wanted.

    Polls rather than blocks in C++, so that signals are handled meanwhile.
    """
    deadline = time.monotonic() + timeout_s
    pause_s = _POLL_S / 5
    while not store.check([key]):
        if time.monotonic() > deadline or not still_wanted():
            return None
        time.sleep(pause_s)
        pause_s = min(pause_s * 1.5, 0.05)
    value: bytes = store.get(key)
    return value
