"""The most memory that this process held, beside what was planned for it."""

import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

_PAUSE_S = 0.01


class PeakMemory:
    """On a CPU the growth of private memory (RssAnon) since this was made, while `watching`; on a GPU what torch
    allocated there, at its most."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._before_bytes = self._most_bytes = _private_bytes()
        self._over = threading.Event()
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)

    @property
    def bytes(self) -> int:
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device)
        return self._most_bytes - self._before_bytes

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Look every hundredth of a second while the body runs. Not around what is timed by the millisecond."""
        self._over.clear()
        thread = threading.Thread(target=self._watch, daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._over.set()
            thread.join()

    def _watch(self) -> None:
        while True:
            self._most_bytes = max(self._most_bytes, _private_bytes())
            if self._over.wait(_PAUSE_S):
                return


def _private_bytes() -> int:
    """This process's private memory; 0 where the system does not say."""
    try:
        status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
    except OSError:
        return 0
    found = re.search(r"RssAnon:\s+(\d+) kB", status)
    return int(found[1]) * 1024 if found else 0
