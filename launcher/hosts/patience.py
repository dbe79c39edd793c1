"""Waiting that has a limit, and that says every few seconds for what."""

import time
from collections.abc import Callable

from launcher.console import say

_FIRST_S, _AGAIN_S = 2.0, 5.0


class Patience:
    """A limit, and a line now and then while it lasts."""

    def __init__(self, limit_s: float) -> None:
        self.limit_s, self.started = limit_s, time.monotonic()
        self._next_s = _FIRST_S

    @property
    def left_s(self) -> float:
        return max(0.0, self.limit_s - (time.monotonic() - self.started))

    @property
    def over(self) -> bool:
        return not self.left_s

    def say(self, text: Callable[[], str]) -> None:
        if self.limit_s - self.left_s >= self._next_s:
            self._next_s += _AGAIN_S
            say(f"{text()}; {self.left_s:.0f} s left")
