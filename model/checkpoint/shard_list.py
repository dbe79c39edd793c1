"""Which files of a folder are its shards, and what a folder without any is."""

import re
from collections.abc import Sequence
from pathlib import Path

from model.checkpoint.files import describe_start, open_regular
from parallel.errors import RefusedError

SHARD = re.compile(r"consolidated\.(\d+)\.pth")
_MAX_SHARDS = 1024


def list_shards(folder: Path) -> tuple[list[Path], list[str]]:
    """The shard files in order of their numbers, and notes on what was passed over."""
    try:
        names = sorted(entry.name for entry in folder.iterdir())
    except FileNotFoundError:
        raise RefusedError(
            f"{folder}: does not exist; --ckpt_dir (CKPT_DIR, SRC) wants a folder with params.json and its shards, or "
            "config.json and safetensors"
        ) from None
    except NotADirectoryError:
        raise RefusedError(f"{folder}: is a file; give the folder that holds it") from None
    except OSError as error:
        raise RefusedError(f"{folder}: cannot be read: {error.strerror}") from None
    numbers: dict[int, str] = {}
    for name in names:
        match = SHARD.fullmatch(name)
        if match is None:
            continue
        number = int(match.group(1))
        if number in numbers:
            raise RefusedError(f"{folder}: holds both {numbers[number]} and {name}; keep one of them as shard {number}")
        numbers[number] = name
    if not numbers:
        raise RefusedError(f"{folder}: {_describe_foreign(folder, names)}")
    last = max(numbers)
    if last > _MAX_SHARDS:
        raise RefusedError(f"{folder}: {numbers[last]} has a number that no shard has; move it away")
    missing = [number for number in range(last) if number not in numbers]
    if missing:
        shown = ", ".join(f"consolidated.{number:02d}.pth" for number in missing[:8])
        raise RefusedError(
            f"{folder}: {len(missing)} of {last + 1} shards missing: {shown}{', ...' if len(missing) > 8 else ''} "
            f"(the last one found is {numbers[last]}); get the missing files"
        )
    others = [name for name in names if name.endswith((".pth", ".pt")) and not SHARD.fullmatch(name)]
    notes = [f"{folder}: {', '.join(others)} ignored: shards are named consolidated.NN.pth"] if others else []
    return [folder / numbers[number] for number in sorted(numbers)], notes


def _describe_foreign(folder: Path, names: Sequence[str]) -> str:
    """What a folder without a shard is, and what to do."""
    wanted = "wanted params.json and consolidated.00.pth, consolidated.01.pth, ..., or config.json and safetensors"
    if not names:
        return f"is empty; {wanted}"
    for name in names:
        path = folder / name
        if path.is_file() and (what := _describe_first_bytes(path)) is not None:
            return f"{name} {what}; {wanted}"
    inner = [name for name in names if (folder / name).is_dir() and any((folder / name).glob("consolidated.*.pth"))]
    if inner:
        return f"holds no shards, but its subfolder does: give {folder / inner[0]}"
    shown = ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")
    return f"holds no consolidated.NN.pth; {wanted}; found {shown}"


def _describe_first_bytes(path: Path) -> str | None:
    with open_regular(path) as file:
        start = file.read(64)
    return describe_start(start) if start else None
