"""Where a value stands in a job file, and what is wrong there."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from parallel.errors import RefusedError

# So many errors are told of one file; more would push the first ones off the screen.
_MOST = 30


@dataclass(frozen=True, slots=True)
class Place:
    """Where a value stands, for messages: file:line:column, or the file alone where there is no line."""

    file: str
    line: int = 0
    column: int = 0

    def __str__(self) -> str:
        return f"{self.file}:{self.line}:{self.column}" if self.line else self.file


COMMAND_LINE = Place("the command line")


@dataclass(frozen=True, slots=True)
class Located:
    """A value and its place; in a mapping the values, and in a list the items, are Located too."""

    value: Any
    place: Place
    # Where the key stands, for a value of a mapping.
    key_place: Place | None = None
    # A scalar as it stands in the file; None where it is in quotes, or does not come from a file.
    written: str | None = None
    # It was refused already, so that nothing more is to be said of it.
    wrong: bool = False

    @property
    def key_at(self) -> Place:
        return self.key_place or self.place

    @property
    def items(self) -> list["Located"]:
        """What it holds, of a mapping or a list."""
        if isinstance(self.value, dict):
            return list(self.value.values())
        return self.value if isinstance(self.value, list) else []

    def is_wrong(self) -> bool:
        """Whether something in it was refused already."""
        return self.wrong or any(item.is_wrong() for item in self.items)

    def plain(self) -> Any:
        """The value without places."""
        if isinstance(self.value, dict):
            return {key: item.plain() for key, item in self.value.items()}
        if isinstance(self.value, list):
            return [item.plain() for item in self.value]
        return self.value


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong: where, and a sentence."""

    place: Place
    text: str

    def __str__(self) -> str:
        # A line for each problem, whatever stands in a key.
        return f"{self.place}: {self.text}".replace("\n", "\\n")


class Problems:
    """All that is wrong with a job, to be told at once."""

    def __init__(self, found: Iterable[Problem] = ()) -> None:
        self._found = list(found)

    def __iter__(self) -> Iterator[Problem]:
        return iter(self._found)

    def __len__(self) -> int:
        return len(self._found)

    def add(self, place: Place, text: str) -> None:
        # A file of a hundred thousand wrong keys is told by its first ones, without a thought for the others.
        self._found.append(Problem(place, text))

    @property
    def enough(self) -> bool:
        """Whether more would not be told anyway."""
        return len(self._found) >= 4 * _MOST

    def refuse(self) -> None:
        """RefusedError with every problem on a line, in the order of the file; nothing where there is none."""
        if not self._found:
            return
        # What stands on the command line comes last: it is read after the file.
        ordered = sorted(
            self._found, key=lambda problem: (not problem.place.line, problem.place.line, problem.place.column)
        )
        lines = [str(problem) for problem in ordered[:_MOST]]
        if len(ordered) > _MOST:
            lines.append(f"{ordered[_MOST].place.file}: and {len(ordered) - _MOST} more")
        raise RefusedError("\n".join(lines))
