"""What a command is: how it is written, what it does, which settings it has, and what runs it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from launcher.settings.schema import Setting
from parallel.environment import Environment

Arguments = Sequence[str]


@dataclass(frozen=True, slots=True)
class Command:
    """One command.

    `act` is given the words, the flags as they were typed, what torchrun's variables say, and all that was typed;
    it returns the exit code.
    """

    usage: str
    summary: str
    settings: Callable[[], dict[str, Setting]]
    act: Callable[[Sequence[str], dict[str, str], Environment, Arguments], int]
