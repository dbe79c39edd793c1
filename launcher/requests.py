"""What the user asks the model: prompts from the command line or from a file."""

import json
from collections.abc import Sequence
from pathlib import Path

from model.checkpoint.files import open_regular
from parallel.errors import RefusedError


def read_prompts(given: Sequence[str]) -> list[str]:
    """The texts of `--prompts`: as given, or the lines of @FILE.txt, or the "prompt" of each line of @FILE.jsonl.

    RefusedError names the file and the line.
    """
    if (path := prompts_file(given)) is not None:
        return _read_file(path)
    if not given:
        raise RefusedError("--prompts is an empty list; give one prompt or more")
    return list(given)


def prompts_file(given: Sequence[str]) -> Path | None:
    """The file of `--prompts @FILE`; None where the texts themselves were given."""
    return Path(given[0][1:]) if len(given) == 1 and given[0].startswith("@") else None


def _read_file(path: Path) -> list[str]:
    try:
        # Every rank reads it, so it must stay there to be read again.
        with open_regular(path) as file:
            data = file.read()
    except RefusedError as error:
        raise RefusedError(f"--prompts @{error}") from None
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise RefusedError(f"{path}:{line}: is not UTF-8 text (byte {error.start} of the file)") from None
    lines = [(number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    if not lines:
        raise RefusedError(f"--prompts @{path}: holds no prompts; write one a line")
    if path.suffix == ".jsonl":
        return [_read_line(path, number, line) for number, line in lines]
    return [line.rstrip("\r") for _, line in lines]


def _read_line(path: Path, number: int, line: str) -> str:
    try:
        found = json.loads(line)
    except (json.JSONDecodeError, RecursionError) as error:
        reason = error.msg if isinstance(error, json.JSONDecodeError) else "nested too deeply"
        raise RefusedError(f"{path}:{number}: is not valid JSON: {reason}") from None
    if not isinstance(found, dict) or not isinstance(found.get("prompt"), str):
        raise RefusedError(f'{path}:{number}: wanted an object with a text, as {{"prompt": "Once upon a time"}}')
    prompt: str = found["prompt"]
    return prompt
