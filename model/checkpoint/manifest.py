"""shards.json: the checksums of each shard's tensors, written beside the shards that we write.

Meta's format says nowhere which rank a file is for, so swapped files load in silence. With this file
they are told apart. It holds {"format": 1, "mp": N, "shards": [{"file", "crc32": {name: number}}]};
the CRC-32 is that of the tensor's record, which stands in the shard's zip directory.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from model.checkpoint.files import ShardHeader, open_regular
from parallel.errors import RefusedError

MANIFEST = "shards.json"
_MAX_BYTES = 2**28


def checksums(header: ShardHeader) -> dict[str, int]:
    return {name: entry.crc32 for name, entry in header.tensors.items()}


def manifest_text(headers: Sequence[ShardHeader]) -> str:
    shards = [{"file": header.path.name, "crc32": checksums(header)} for header in headers]
    return json.dumps({"format": 1, "mp": len(headers), "shards": shards}, indent=1) + "\n"


def check_manifest(folder: Path, headers: Sequence[ShardHeader]) -> bool:
    """Compare the shards with shards.json. False where there is none; RefusedError names what differs."""
    path = folder / MANIFEST
    if not path.exists() and not path.is_symlink():
        return False
    listed = _read(path)
    if set(listed) != {header.path.name for header in headers}:
        raise RefusedError(
            f"{path}: lists {', '.join(sorted(listed))} but the folder holds "
            f"{', '.join(header.path.name for header in headers)}; get the missing files, or delete {MANIFEST} "
            "if the shards were replaced on purpose"
        )
    for header in headers:
        found = checksums(header)
        if found == listed[header.path.name]:
            continue
        twin = next((name for name, sums in listed.items() if sums == found), None)
        if twin is not None:
            raise RefusedError(
                f"{header.path}: holds what {MANIFEST} lists for {twin}; the shards are swapped: rename them"
            )
        wanted = listed[header.path.name]
        key = next(key for key in [*wanted, *found] if wanted.get(key) != found.get(key))
        raise RefusedError(
            f"{header.path}: {key} is not what {MANIFEST} lists (CRC-32 {found.get(key)}, listed {wanted.get(key)}); "
            f"get the file again, or delete {MANIFEST} if it was replaced on purpose"
        )
    return True


def _read(path: Path) -> dict[str, dict[str, int]]:
    try:
        with open_regular(path) as file:
            content: Any = json.loads(file.read(_MAX_BYTES))
        if content["format"] != 1:
            raise RefusedError(f"{path}: has format {content['format']!r}; this version of shardrun knows format 1")
        return {shard["file"]: {str(k): int(v) for k, v in shard["crc32"].items()} for shard in content["shards"]}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        if isinstance(error, RefusedError):
            raise
        raise RefusedError(
            f"{path}: is not a list of shards as shardrun writes it ({type(error).__name__}: {error}); delete it or "
            "write the checkpoint again"
        ) from None
