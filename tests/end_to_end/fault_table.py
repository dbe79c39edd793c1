"""The table of docs/faults.md: what is said in each case of a fault, the exit code, and the seconds that it took here.

    .venv/bin/python -m tests.end_to_end.fault_table

runs the tests that are named after a case (B52, C66, F91; about ten minutes) and writes the table anew.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

# Names a file to which every command under test adds a line.
_TABLE = "SHARDRUN_FAULT_TABLE"
_PAGE = Path(__file__).resolve().parents[2] / "docs" / "faults.md"
_BEGIN, _END = "<!-- measured: begin -->\n", "<!-- measured: end -->\n"
_CASE = re.compile(r"(?<![A-Za-z0-9])([BCF])(\d{2,3})_(\w+)")
_LONGEST = 150
# Trials that need not be so many for a row.
_LONG = ("fifty", "hundred", "many")
# The cases that tests are named after, by their letter.
_NUMBERS = {"B": range(52, 66), "C": range(66, 79), "F": range(91, 101)}


def note_for_table(code: int, err: str, seconds: float) -> None:
    """Take down how a command of the running test ended, where somebody wants to know."""
    test, table = os.environ.get("PYTEST_CURRENT_TEST", ""), os.environ.get(_TABLE)
    found = _CASE.search(test.rpartition("::")[2].partition(" (")[0])
    if table is None or found is None:
        return
    letter, number, name = found.groups()
    line = {"letter": letter, "number": int(number), "name": name, "code": code, "seconds": seconds, "said": _said(err)}
    with Path(table).open("a", encoding="utf-8") as file:
        file.write(f"{json.dumps(line)}\n")


def _said(err: str) -> str:
    """The message, without what differs from run to run."""
    lines = [line for line in err.splitlines() if line.startswith(("shardrun: error:", "shardrun: stopped by"))]
    text = lines[-1].removeprefix("shardrun: ").removeprefix("error: ") if lines else ""
    if lines and text in ("error:", ""):  # several lines, for the errors of a job file
        text = err.partition(lines[-1])[2].strip().partition("\n")[0]
    text = re.sub(r"\(pid \d+, host [^)]+\)", "(pid, host)", text)
    text = re.sub(r"held by \S+ \(pid \d+\)", "held by NAME (pid)", text)
    text = re.sub(r"[\d.]+( of [\d.]+)? GB", "N GB", text)
    text = re.sub(r"\b\d{5,}\b", "N", text)
    text = re.sub(r"/\S*/(?=[\w.]+)", "", text)
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 4]} ..."


def table_of(lines: Iterable[str]) -> str:
    """A row for each case and exit code: of the commands that were run for it the message of one, and the slowest."""
    rows: dict[tuple[str, int, int], list[dict[str, object]]] = {}
    for line in lines:
        found = json.loads(line)
        rows.setdefault((found["letter"], found["number"], found["code"]), []).append(found)
    text = "| case | runs | what is said (one of them) | exit code | seconds, at most |\n|---|---|---|---|---|\n"
    for (letter, number, code), found in sorted(rows.items()):
        said = next((str(one["said"]) for one in found if one["said"]), "nothing").replace("|", "\\|")
        shown = code if code >= 0 else f"signal {-code}"
        seconds = max(float(str(one["seconds"])) for one in found)
        text += f"| {letter}{number} | {len(found)} | {said} | {shown} | {seconds:.1f} |\n"
    return text


def _measure() -> int:
    """Run the tests, and put their table into the page."""
    with tempfile.TemporaryDirectory() as folder:
        table = Path(folder) / "lines"
        cases = [f"{letter}{number}_" for letter, numbers in _NUMBERS.items() for number in numbers]
        asked = [
            "tests/end_to_end",
            "-m",
            "drill or not drill",
            "-k",
            f"({' or '.join(cases)}) and not {' and not '.join(_LONG)}",
        ]
        done = subprocess.run(
            [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *asked],
            env={**os.environ, _TABLE: str(table), "GOMP_SPINCOUNT": "0"},
            check=False,
        )
        page = _PAGE.read_text(encoding="utf-8")
        before, after = page.partition(_BEGIN)[0], page.partition(_END)[2]
        found = table_of(table.read_text(encoding="utf-8").splitlines())
        _PAGE.write_text(f"{before}{_BEGIN}{found}{_END}{after}", encoding="utf-8")
        return done.returncode


if __name__ == "__main__":
    sys.exit(_measure())
