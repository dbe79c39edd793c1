"""How an act ended on each rank, as values that a test can compare."""

from collections.abc import Callable
from typing import Any

Verdict = tuple[str, str]


def verdict(act: Callable[[], Any]) -> Verdict:
    """The kind and text of the error that `act` raises, or what it returns."""
    try:
        return "returned", str(act())
    except Exception as error:
        return type(error).__name__, str(error)


def the_same_on_all(verdicts: list[Verdict]) -> Verdict:
    assert len(set(verdicts)) == 1, verdicts
    return verdicts[0]
