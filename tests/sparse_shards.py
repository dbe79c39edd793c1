"""Folders of Meta's layout with shards of any size that take no room: headers without data.

The records of such a zip file are holes. Their checksums are made up: the same in every shard for what every
shard holds whole, and of each shard's own for what is cut.
"""

import io
import json
import pickle
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch

Shapes = dict[str, tuple[int, ...]]
# The checksum of a tensor, by its name and the shard's number.
Checksum = Callable[[str, int], int]


@dataclass(frozen=True, kw_only=True)
class Published:
    """A model as Meta publishes it; `kv_heads` and the number of shards are those of its files."""

    mp: int
    dim: int
    layers: int
    heads: int
    kv_heads: int
    ffn: int
    vocabulary: int
    embedding_dim: int = 0

    def shapes(self) -> Shapes:
        """What each shard holds."""
        dim, ffn, vocabulary, mp = self.dim, self.ffn, self.vocabulary, self.mp
        kv_dim = self.kv_heads * dim // self.heads
        layer = {
            "attention.wq": (dim // mp, dim),
            "attention.wk": (kv_dim // mp, dim),
            "attention.wv": (kv_dim // mp, dim),
            "attention.wo": (dim, dim // mp),
            "feed_forward.w1": (ffn // mp, dim),
            "feed_forward.w2": (dim, ffn // mp),
            "feed_forward.w3": (ffn // mp, dim),
            "attention_norm": (dim,),
            "ffn_norm": (dim,),
        }
        whole = {f"layers.{number}.{name}.weight": layer[name] for number in range(self.layers) for name in layer}
        embedding = (vocabulary // mp, dim) if self.embedding_dim == 0 else (vocabulary, dim // mp)
        last = {"norm.weight": (dim,), "output.weight": (vocabulary // mp, dim)}
        return {"tok_embeddings.weight": embedding, **whole, **last}


LLAMA_3_70B = Published(mp=8, dim=8192, layers=80, heads=64, kv_heads=8, ffn=28672, vocabulary=128256)
LLAMA_3_70B_JSON = {
    "dim": 8192,
    "n_layers": 80,
    "n_heads": 64,
    "n_kv_heads": 8,
    "vocab_size": 128256,
    "multiple_of": 4096,
    "ffn_dim_multiplier": 1.3,
    "norm_eps": 1e-5,
    "rope_theta": 500000.0,
}


def own_checksum(name: str, rank: int) -> int:
    return zlib.crc32(name.encode() if "norm" in name else f"{name} {rank}".encode())


def write_sparse_folder(
    folder: Path, model: Published, params: dict[str, Any], checksum: Checksum = own_checksum
) -> Path:
    folder.mkdir(parents=True)
    (folder / "params.json").write_text(json.dumps(params))
    for rank in range(model.mp):
        _write_shard(folder / f"consolidated.{rank:02d}.pth", model.shapes(), rank, checksum)
    return folder


def _write_shard(path: Path, shapes: Shapes, rank: int, checksum: Checksum) -> None:
    """As torch.save writes bfloat16 tensors, but for the tensors' bytes."""
    table = io.BytesIO()
    _Pickler(table, protocol=2).dump(
        {name: _Described(str(i), shape) for i, (name, shape) in enumerate(shapes.items())}
    )
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", table.getvalue())
        file: Any = archive.fp
        for index, (name, shape) in enumerate(shapes.items()):
            info = zipfile.ZipInfo(f"archive/data/{index}")
            info.file_size = info.compress_size = 2 * prod(shape)
            info.CRC, info.header_offset = checksum(name, rank), file.tell()
            file.write(info.FileHeader(zip64=False))
            file.seek(info.file_size, io.SEEK_CUR)
            archive.filelist.append(info)
            archive.start_dir = file.tell()  # where zipfile will write the next record
        archive.writestr("archive/version", "3\n")


class _Described:
    """Stands for a tensor in the pickle."""

    def __init__(self, key: str, shape: tuple[int, ...]) -> None:
        self.key, self.shape = key, shape


class _StorageOf:
    def __init__(self, tensor: _Described) -> None:
        self.tensor = tensor


class _Pickler(pickle.Pickler):
    def persistent_id(self, obj: Any) -> Any:
        if not isinstance(obj, _StorageOf):
            return None
        return "storage", torch.BFloat16Storage, obj.tensor.key, "cpu", prod(obj.tensor.shape)

    def reducer_override(self, obj: Any) -> Any:
        if not isinstance(obj, _Described):
            return NotImplemented
        strides = tuple(prod(obj.shape[place + 1 :]) for place in range(len(obj.shape)))
        return torch._utils._rebuild_tensor_v2, (_StorageOf(obj), 0, obj.shape, strides, False, {})
