"""Which layout a folder has, and what it holds. The one way in for whoever reads a checkpoint."""

import re
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from model.checkpoint.checkpoint import Checkpoint
from model.checkpoint.meta_folder import open_meta_folder
from model.checkpoint.shard_list import SHARD
from parallel.errors import RefusedError

_GGUF = ".gguf"
# The parts of a split GGUF file but the first, which stands for all.
_LATER_PART = re.compile(r".*-(?!00001)\d{5}-of-\d{5}\.gguf")


def open_checkpoint(folder: str | Path, allow_legacy: bool = False) -> Checkpoint:
    """Read and check a folder's headers. RefusedError says what is wrong with it, and where. No torch, milliseconds.

    Meta's layout where there are shards named consolidated.NN.pth, Hugging Face's where there is a config.json
    or weights of its names, and GGUF where `folder` is such a file or holds one and no other weights.
    `allow_legacy`: read bare-pickle files of torch before 1.6 too (their weights only, never code).
    """
    folder = Path(folder)
    if (file := _gguf_file(folder)) is not None:
        from model.gguf.folder import open_gguf  # needs the optional package gguf

        return open_gguf(file)
    if _is_hugging_face(folder):
        from model.hugging_face.folder import open_hugging_face_folder  # most folders do not need it

        return open_hugging_face_folder(folder, allow_legacy)
    checkpoint = open_meta_folder(folder, allow_legacy)
    if _has_hugging_face_weights(entry.name for entry in folder.iterdir()):
        note = f"{folder}: holds Meta's shards and Hugging Face's weights; the shards are read"
        return replace(checkpoint, notes=(*checkpoint.notes, note))
    return checkpoint


def _is_hugging_face(folder: Path) -> bool:
    try:
        names = {entry.name for entry in folder.iterdir()}
    except OSError:
        return False  # the other reader says what is wrong
    if any(SHARD.fullmatch(name) for name in names):
        return False
    return _has_hugging_face_weights(names) or ("config.json" in names and "params.json" not in names)


def _has_hugging_face_weights(names: Iterable[str]) -> bool:
    return any(name.endswith(".safetensors") or name.startswith("pytorch_model") for name in names)


def _gguf_file(folder: Path) -> Path | None:
    """The GGUF file that `folder` is, or the only one in it. RefusedError where there are several to choose from."""
    try:
        if folder.suffix == _GGUF and not folder.is_dir():
            return folder
        names = sorted(entry.name for entry in folder.iterdir())
    except OSError:
        return None
    found = [name for name in names if name.endswith(_GGUF)]
    if not found or any(SHARD.fullmatch(name) for name in names) or _is_hugging_face(folder):
        return None
    first = [name for name in found if not _LATER_PART.fullmatch(name)] or found[:1]
    if len(first) > 1:
        raise RefusedError(f"{folder}: holds {len(first)} GGUF files ({', '.join(first[:8])}); give the path of one")
    return folder / first[0]
