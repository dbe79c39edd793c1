"""Ranks that nobody of ours started, as under torchrun, watch each other: by their positions in the store.

A thread of each rank writes down where it is and reads where the others are; the first of those that do not hang
names the one that does. Under our own launcher that one does it (watch.py).
"""

import contextlib
import json
import os
import threading
import time
from dataclasses import asdict
from typing import TYPE_CHECKING

from launcher.ranks.host import host_name
from launcher.ranks.report import RANK_FAILED, print_error
from launcher.ranks.watch import Hang, Seen, Watch
from parallel.position import Position, position

if TYPE_CHECKING:
    from torch._C._distributed_c10d import Store

    from parallel.world import World

_BEAT_S = 1.0
# For a rank that is about to be told why to read it.
_READ_S = 1.5


class SelfWatch:
    """This rank's thread, from the meeting of the ranks to `end`. Every rank must have one, with the same limits."""

    def __init__(self, world: "World", heartbeat_s: float, timeout_s: float) -> None:
        self.rank, self.size = world.env.rank, world.env.world_size
        # Every rank reads of every other: less often where there are many.
        self._pause_s = _BEAT_S * max(1.0, self.size / 16)
        self.watch = Watch(heartbeat_s, timeout_s, longest_look_s=2 * self._pause_s)
        self._known: dict[int, Seen] = {}
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        if world.store is not None and heartbeat_s:
            # A connection of its own: the main thread may wait in the other.
            self.store: Store = world.store.clone()  # type: ignore[attr-defined]
            self._thread.start()

    def end(self) -> None:
        """The ranks part: to be called before the store goes."""
        self._over.set()
        if self._thread.is_alive():
            self._thread.join(timeout=2 * _BEAT_S)

    def _run(self) -> None:
        looked_s = time.monotonic()
        # The store may go with the rank that serves it: then everything ends anyhow.
        with contextlib.suppress(Exception):
            while not self._over.wait(self._pause_s):
                self._tell()
                if self.store.check(["hang"]):
                    time.sleep(_READ_S)
                    os._exit(RANK_FAILED)
                now = time.monotonic()
                hang = self.watch.look(self._look(), now - looked_s)
                looked_s = now
                if hang is not None:
                    self._end_all(hang)

    def _tell(self) -> None:
        self.store.set(f"position/{self.rank}", json.dumps([host_name(), os.getpid(), asdict(position.now())]))

    def _look(self) -> dict[int, Seen]:
        for rank in range(self.size):
            key = f"position/{rank}"
            if self.store.check([key]):
                _, _, fields = json.loads(self.store.get(key))
                self._known[rank] = Seen(position=Position(**fields))
        return self._known

    def _end_all(self, hang: Hang) -> None:
        """The first rank that does not hang says so; the others follow."""
        if self.rank != min(set(range(self.size)) - set(hang.ranks), default=0):
            return
        named = "; ".join(self._name(rank) for rank in hang.ranks)
        wait = "" if hang.waiting is None else f"; rank {hang.waiting} waits, {self._known[hang.waiting].position}"
        print_error(f"{named}: no sign of life for {hang.silent_s:.0f} s{wait}")
        self.store.set("hang", "1")
        time.sleep(_READ_S)
        os._exit(RANK_FAILED)

    def _name(self, rank: int) -> str:
        host, pid, _ = json.loads(self.store.get(f"position/{rank}"))
        return f"rank {rank} (pid {pid}, host {host}) hangs while {self._known[rank].position}"
