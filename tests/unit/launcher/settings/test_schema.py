"""Settings that take a whole number or a word, as torchrun's nproc_per_node does."""

from dataclasses import dataclass
from typing import Literal

import pytest

from launcher.settings.schema import Setting, Wanted, setting, settings_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    ranks: int | Literal["auto", "gpu", "cpu"] | None = setting("ranks", default=None, low=1, high=1024)
    device: Literal["cuda", "cpu"] | None = setting("device", default=None)


RANKS, DEVICE = settings_of(Section)["ranks"], settings_of(Section)["device"]


@pytest.mark.parametrize(
    ("setting", "raw", "typed", "value"),
    [
        (RANKS, "auto", True, "auto"),
        (RANKS, "auto", False, "auto"),
        (RANKS, 4, True, 4),
        (RANKS, "4", False, 4),
        (RANKS, None, True, None),
        (DEVICE, "cuda", True, "cuda"),
        (DEVICE, None, True, None),
    ],
)
def test_a_whole_number_or_a_word_is_taken(setting: Setting, raw: object, typed: bool, value: object) -> None:
    assert setting.convert(raw, typed) == value


@pytest.mark.parametrize(
    ("raw", "typed"), [("all", False), ("4", True), (0, True), (1.0, True), (True, True), (1025, True)]
)
def test_anything_else_is_refused(raw: object, typed: bool) -> None:
    with pytest.raises(Wanted, match=r"^a whole number of 1 to 1024, or auto, gpu or cpu$"):
        RANKS.convert(raw, typed)
