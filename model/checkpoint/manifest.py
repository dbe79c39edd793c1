"""shards.json: what each shard holds, written beside the shards that we write.

Meta's format says nowhere which rank a file is for, so swapped files load in silence, and an uneven cut
could not be told at all. The file holds {"format": 2, "mp": N, "shards": [{"file", "crc32": {name: number},
"slices": {name: [start, stop]}}]}. The CRC-32 is that of the tensor's record, which stands in the shard's
zip directory; a slice is the part of the uncut weight along the dimension it is cut along, and is given for
cut weights only. Format 1 had no slices: every cut was even.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from model.checkpoint.files import FileHeader, open_regular, printable
from model.cuts import Weight
from model.split import Split
from parallel.errors import RefusedError
from parallel.slices import Slice

MANIFEST = "shards.json"
_MAX_BYTES = 2**28


@dataclass(frozen=True, slots=True)
class ListedShard:
    """What shards.json says of one file. `slices` is None in format 1."""

    file: str
    crc32: dict[str, int]
    slices: dict[str, Slice] | None


def manifest_text(headers: Sequence[FileHeader], weights: Sequence[Weight], split: Split) -> str:
    """The content of shards.json for shards that hold `weights` cut as `split` says."""
    owned = {weight.name: weight.slices(split) for weight in weights if weight.cut is not None}
    shards = [
        {
            "file": header.path.name,
            "crc32": header.checksums,
            "slices": {name: [slices[rank].start, slices[rank].stop] for name, slices in owned.items()},
        }
        for rank, header in enumerate(headers)
    ]
    return json.dumps({"format": 2, "mp": len(headers), "shards": shards}, indent=1) + "\n"


def read_manifest(folder: Path, headers: Sequence[FileHeader]) -> list[ListedShard] | None:
    """What shards.json says of the shards, in their order, compared with their headers.

    None where there is none; RefusedError names what differs.
    """
    path = folder / MANIFEST
    if not path.exists() and not path.is_symlink():
        return None
    listed = {shard.file: shard for shard in _read(path)}
    if set(listed) != {header.path.name for header in headers}:
        raise RefusedError(
            f"{path}: lists {', '.join(map(printable, sorted(listed)))} but the folder holds "
            f"{', '.join(header.path.name for header in headers)}; get the missing files, or delete {MANIFEST} "
            "if the shards were replaced on purpose"
        )
    for header in headers:
        _check(header, listed)
    return [listed[header.path.name] for header in headers]


def _check(header: FileHeader, listed: Mapping[str, ListedShard]) -> None:
    found, wanted = header.checksums, listed[header.path.name].crc32
    if found == wanted:
        return
    twin = next((name for name, shard in listed.items() if shard.crc32 == found), None)
    if twin is not None:
        raise RefusedError(
            f"{header.path}: holds what {MANIFEST} lists for {printable(twin)}; the shards are swapped: rename them"
        )
    key = next(key for key in [*wanted, *found] if wanted.get(key) != found.get(key))
    raise RefusedError(
        f"{header.path}: {printable(key)} is not what {MANIFEST} lists (CRC-32 {found.get(key)}, listed "
        f"{wanted.get(key)}); get the file again, or delete {MANIFEST} if it was replaced on purpose"
    )


def _read(path: Path) -> list[ListedShard]:
    try:
        with open_regular(path) as file:
            content: Any = json.loads(file.read(_MAX_BYTES))
        if content["format"] not in (1, 2):
            raise RefusedError(
                f"{path}: has format {printable(str(content['format']))}; this version of shardrun knows 1 and 2"
            )
        return [_listed(shard, content["format"]) for shard in content["shards"]]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, OverflowError) as error:
        if isinstance(error, RefusedError):
            raise
        raise RefusedError(
            f"{path}: is not a list of shards as shardrun writes it ({type(error).__name__}: {printable(str(error))}); "
            "delete it or write the checkpoint again"
        ) from None


def _listed(shard: Any, version: int) -> ListedShard:
    slices = None
    if version > 1:
        slices = {str(name): Slice(int(start), int(stop)) for name, (start, stop) in shard["slices"].items()}
    return ListedShard(str(shard["file"]), {str(k): int(v) for k, v in shard["crc32"].items()}, slices)
