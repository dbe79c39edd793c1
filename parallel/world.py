"""All ranks of one run, from the first meeting to the last: the only maker of process groups."""

import atexit
import contextlib
import itertools
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import PrefixStore, Store

from parallel import registry
from parallel.environment import (
    Environment,
    Placement,
    choose_placement,
    read_environment,
    read_hardware,
    threads_from_environment,
)
from parallel.errors import PeerFailedError, RefusedError, ShardrunError
from parallel.exchange import make_exchange
from parallel.mesh import Mesh, current_mesh
from parallel.position import position
from parallel.rendezvous import open_store, wait_for

# How long a collective may wait for a rank before the run is given up.
GROUP_TIMEOUT_S = 300.0
# For the others to have read the store's last words: where something failed, and where all is well. On a slow link
# another rank may be seconds behind.
_FAREWELL_S, _LEAVE_S = 3.0, 30.0
# For ranks that fail alike to say so, where our launcher ends those that are still at work.
_ALIKE_S = 2.0
_NOWHERE = Placement(device="cpu", backend=None, threads=1, reason="")
_adoptions = itertools.count(1)

T = TypeVar("T")


@dataclass(slots=True)
class World:
    """This process's rank, its device, and its ways to the other ranks.

    `together` and `agree` speak through the store, in short JSON, so that they work before, beside and
    after collectives; every rank must call them in the same order.
    """

    env: Environment
    placement: Placement
    store: Store | None
    mesh: Mesh = field(default_factory=Mesh)
    owns_group: bool = False
    timeout_s: float = GROUP_TIMEOUT_S
    # False where the caller made the process group and nothing says which ranks share this host.
    host_known: bool = True
    _meetings: int = 0

    @property
    def neighbours(self) -> range:
        """The ranks known to be on this host, this one among them."""
        first = self.env.rank - self.env.local_rank
        return (
            range(first, first + self.env.local_world_size)
            if self.host_known
            else range(self.env.rank, self.env.rank + 1)
        )

    @property
    def device(self) -> torch.device:
        return torch.device(self.placement.device)

    def together(self, doing: str, act: Callable[[], T]) -> T:
        """Run `act` on every rank; where it is refused on any, raise that on all, so that one can print it for all.

        Where it fails by a fault rather than a refusal, the rank raises its own error, and the others
        PeerFailedError.
        """
        position.phase(doing)
        if self.store is None:
            return act()
        fault: Exception | None = None
        result: T | None = None
        verdict: dict[str, str] = {}
        try:
            result = act()
        except RefusedError as error:
            verdict = {"refused": str(error)}
        except Exception as error:
            fault, verdict = error, {"failed": f"{type(error).__name__}: {error}"}
        # The others may take minutes to come to this, and are to be ended.
        in_haste = bool(verdict) and bool(self.env.run_folder)
        verdicts = self._exchange(doing, json.dumps(verdict), in_haste)
        failed = {rank: found for rank, text in enumerate(verdicts) if (found := json.loads(text))}
        if fault is not None:
            raise fault
        for rank, found in failed.items():
            if "failed" in found:
                raise PeerFailedError(f"rank {rank} failed while {doing}: {found['failed']}")
        for rank, found in failed.items():
            everywhere = all(other == found for other in failed.values()) and len(failed) == self.env.world_size
            raise RefusedError(found["refused"] if everywhere else f"rank {rank}: {found['refused']}")
        return result  # type: ignore[return-value]

    def agree(self, what: str, settings: Mapping[str, object]) -> None:
        """Refuse, on every rank alike, where `settings` are not the same on all ranks."""
        if self.store is None:
            return
        position.phase(f"comparing {what}")
        everyone = [json.loads(text) for text in self._exchange(what, json.dumps(settings, default=str))]
        for name in sorted({name for settings in everyone for name in settings}):
            values = [settings.get(name, "(absent)") for settings in everyone]
            if any(value != values[0] for value in values):
                other = next(rank for rank, value in enumerate(values) if value != values[0])
                raise RefusedError(
                    f"the ranks disagree on {name} ({what}): rank 0 has {_short(values[0])}, rank {other} has "
                    f"{_short(values[other])}; start every rank with the same settings and files"
                )

    def told(self, doing: str, act: Callable[[], str], *, by_person: bool = False) -> str:
        """What `act` says on rank 0, on every rank; where it is refused there, that is raised on all.

        The others wait for it however long it takes; `by_person`: nor does anybody else find fault with that.
        """
        position.phase(doing, patient=by_person)
        if self.store is None:
            return act()
        self._meetings += 1
        key = f"told/{self._meetings}"
        if self.env.rank == 0:
            try:
                said = act()
            except BaseException as error:  # a signal's too: nobody should wait for a rank that has stopped
                failed = {"failed": f"{type(error).__name__}: {error}"}
                refused = {"refused": str(error)} if isinstance(error, RefusedError) else failed
                with contextlib.suppress(RuntimeError):
                    self.store.set(key, json.dumps(refused))
                raise
            self.store.set(key, json.dumps({"said": said}))
            return said
        with position.waits_in("word from rank 0"):
            while (found := wait_for(self.store, key, self.timeout_s)) is None:
                pass
        verdict: dict[str, str] = json.loads(found)
        if "refused" in verdict:
            raise RefusedError(verdict["refused"])
        if "failed" in verdict:
            raise PeerFailedError(f"rank 0 failed while {doing}: {verdict['failed']}")
        return verdict["said"]

    def _exchange(self, doing: str, text: str, in_haste: bool = False) -> list[str]:
        """Every rank's text, in order of rank; `in_haste`: "{}" for ranks that do not come within seconds."""
        assert self.store is not None
        self._meetings += 1
        prefix = f"meeting/{self._meetings}"
        self.store.set(f"{prefix}/{self.env.rank}", text)
        texts, until_s = [], time.monotonic() + _ALIKE_S
        for rank in range(self.env.world_size):
            limit_s = max(0.0, until_s - time.monotonic()) if in_haste else self.timeout_s
            with position.waits_in(f"word from rank {rank}"):
                # Under our launcher it is the watch that decides who takes too long: one that loads may take longer.
                patient = bool(self.env.run_folder) and not in_haste
                while (found := wait_for(self.store, f"{prefix}/{rank}", limit_s)) is None and patient:
                    pass
            if found is None and in_haste:
                texts.append("{}")
                continue
            if found is None:
                raise PeerFailedError(
                    f"rank {rank} was not heard of for {self.timeout_s:g} s while {doing}; see its log"
                )
            texts.append(found.decode())
        return texts

    def close(self, limit_s: float = _LEAVE_S) -> None:
        """Leave: destroy the group that `start_world` made. Collective on the way of success.

        Without it one healthy gloo run in two exits with an error.
        """
        if self.owns_group:
            self.owns_group = False
            registry.destroy_model_parallel()
            if dist.is_initialized():
                dist.destroy_process_group()
            self.farewell(limit_s)

    def farewell(self, limit_s: float = _FAREWELL_S) -> None:
        """Say that this rank is done with the store; the rank that serves it leaves last."""
        if self.store is None or self.env.agent_store or self.env.rendezvous_file:
            return
        # The store may have gone already, with the rank that served it.
        with contextlib.suppress(RuntimeError):
            self.store.set(f"left/{self.env.rank}", "1")
            deadline = time.monotonic() + limit_s
            for rank in range(1, self.env.world_size if self.env.rank == 0 else 1):
                wait_for(self.store, f"left/{rank}", max(0.0, deadline - time.monotonic()))


def _short(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def start_world(
    *,
    device: str = "auto",
    backend: str = "auto",
    settings: Mapping[str, object] | None = None,
    timeout_s: float = GROUP_TIMEOUT_S,
) -> World:
    """Meet the other ranks, choose device and backend, make the process groups. Every rank must call it.

    At world size 1 there is no process group, no port and no entry in fairscale's registry. Where the
    caller has made a process group already, that one is used and left standing. `settings` are compared
    over the ranks before anything else: a difference is refused with its name.
    """
    if dist.is_available() and dist.is_initialized():
        return _adopt(device, backend, settings, timeout_s)
    env = read_environment()
    position.phase("meeting the other ranks")
    store = open_store(env) if env.world_size > 1 else None
    world = World(env, _NOWHERE, store, timeout_s=timeout_s)
    try:
        world.placement = world.together("choosing a device", lambda: _place(env, device, backend))
        world.agree("at the start", {"torch": torch.__version__, **(settings or {})})
    except ShardrunError:
        # The store goes with the rank that serves it: the others must have read why first.
        world.farewell()
        raise
    if world.placement.backend is not None:
        _make_groups(world)
    return world


def _place(env: Environment, device: str, backend: str) -> Placement:
    placement = choose_placement(env, read_hardware(), device, backend, threads_from_environment())
    torch.set_num_threads(placement.threads)
    if placement.device.startswith("cuda"):
        # Before the process group: NCCL binds a communicator to the current device.
        torch.cuda.set_device(torch.device(placement.device))
    return placement


def _make_groups(world: World) -> None:
    assert world.store is not None
    on_cuda = world.placement.backend == "nccl"
    position.phase("making the process group")
    with position.waits_in("the meeting of all ranks"):
        dist.init_process_group(
            world.placement.backend,
            store=PrefixStore("group", world.store),
            rank=world.env.rank,
            world_size=world.env.world_size,
            timeout=timedelta(seconds=world.timeout_s),
            device_id=world.device if on_cuda else None,
        )
    registry.initialize_model_parallel(world.env.world_size, timedelta(seconds=world.timeout_s))
    world.mesh = current_mesh()
    world.owns_group = True
    _share_memory(world)
    # Here it may be a failure that ends the process.
    atexit.register(world.close, _FAREWELL_S)


def _adopt(device: str, backend: str, settings: Mapping[str, object] | None, timeout_s: float) -> World:
    """Stand on a process group that the caller made."""
    if dist.get_world_size() > 1 and not registry.is_initialized():
        registry.initialize_model_parallel(dist.get_world_size())
    rank, size = dist.get_rank(), dist.get_world_size()
    read = read_environment()
    local = (read.local_rank, read.local_world_size) if read.launched else (rank, size)
    env = Environment(rank=rank, world_size=size, local_rank=local[0], local_world_size=local[1], agent_store=True)
    mesh = current_mesh()
    if mesh.size != size:
        raise RefusedError(
            f"the model-parallel group has {mesh.size} of {size} ranks; shardrun runs one model over all ranks: "
            f"initialize_model_parallel({size}), or start {mesh.size} ranks"
        )
    # Each adoption speaks under keys of its own, or a later one would read an earlier one's texts.
    prefix = f"shardrun/{next(_adoptions)}"
    store = PrefixStore(prefix, dist.distributed_c10d._get_default_store()) if size > 1 else None
    world = World(env, _NOWHERE, store, mesh, timeout_s=timeout_s, host_known=read.launched)
    made = dist.get_backend() if size > 1 else ""
    backend = made if backend == "auto" and made in ("nccl", "gloo") else backend
    world.placement = world.together("choosing a device", lambda: _place(env, device, backend))
    world.agree("at the start", {"torch": torch.__version__, **(settings or {})})
    _share_memory(world)
    return world


def _share_memory(world: World) -> None:
    """Give the mesh an exchange, where all of its ranks may be on one host and compute on its CPU. Collective."""
    group, on_one_host = world.mesh.group, world.env.local_world_size == world.env.world_size
    if group is not None and on_one_host and world.placement.device == "cpu" and dist.get_backend(group) == "gloo":
        world.mesh = replace(world.mesh, exchange=make_exchange(group, world.timeout_s))
