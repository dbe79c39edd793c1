"""The documents: every relative link leads somewhere, and what they promise is there."""

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def documents() -> list[Path]:
    listed = subprocess.run(["git", "ls-files", "*.md"], cwd=ROOT, capture_output=True, text=True, check=False).stdout
    return [ROOT / name for name in listed.splitlines()] or sorted(ROOT.glob("*.md"))


@pytest.mark.parametrize("path", documents(), ids=lambda path: path.relative_to(ROOT).as_posix())
def test_every_relative_link_leads_to_a_file(path: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", path.read_text(encoding="utf-8")):
        if "://" not in target:
            assert (path.parent / target).exists(), f"{path}: {target}"


@pytest.mark.parametrize("path", documents(), ids=lambda path: path.relative_to(ROOT).as_posix())
def test_every_source_file_that_is_named_exists(path: Path) -> None:
    for name in re.findall(
        r"`((?:launcher|model|parallel|scripts|tests|configs|docs|examples)/[\w./-]+)`",
        path.read_text(encoding="utf-8"),
    ):
        assert (ROOT / name).exists(), f"{path}: {name}"
