"""Tiny checkpoints in Meta's layout, written with plain torch.save, and ways to break them.

No code of the three packages is used here: what these files hold was read off Meta's own.
"""

import io
import json
import os
import pickle
import struct
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sentencepiece
import torch
from torch import Tensor

SENTENCES = (
    "the old boat lay on the sand and waited for the tide",
    "a small grey cat sat by the door and looked at the rain",
    "every morning the baker opened his shop before the sun was up",
    "we walked along the river until the road came to an end",
    "she wrote a long letter to her brother in the far north",
    "the quick child jumped over a puddle and laughed very loudly",
    "five black birds flew over the wizard and his extra jar of maize",
    "no one knew why the clock in the tower had stopped at six",
)
VOCABULARY = 300
SHARD = "consolidated.{:02d}.pth"


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """Full sizes of a tiny Llama."""

    dim: int = 32
    n_layers: int = 2
    n_heads: int = 4
    n_kv_heads: int = 2
    multiple_of: int = 32
    vocabulary: int = VOCABULARY

    @property
    def ffn_dim(self) -> int:
        return -(-int(8 * self.dim / 3) // self.multiple_of) * self.multiple_of

    @property
    def head_dim(self) -> int:
        return self.dim // self.n_heads

    def params(self) -> dict[str, object]:
        """What params.json holds; as in Meta's Llama 2 files, the vocabulary is left to the tokenizer."""
        return {
            "dim": self.dim,
            "n_layers": self.n_layers,
            "n_heads": self.n_heads,
            "n_kv_heads": self.n_kv_heads,
            "multiple_of": self.multiple_of,
            "norm_eps": 1e-5,
            "vocab_size": -1,
        }


TINY = Sizes()
# Large enough that the zip's own bytes are nothing beside the weights.
WIDE = Sizes(dim=256)


def whole_weights(sizes: Sizes = TINY, seed: int = 7) -> dict[str, Tensor]:
    """The weights of an uncut model, small random numbers."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator) * 0.2

    dim, kv_dim, ffn = sizes.dim, sizes.n_kv_heads * sizes.head_dim, sizes.ffn_dim
    weights = {"tok_embeddings.weight": draw(sizes.vocabulary, dim)}
    for layer in range(sizes.n_layers):
        shapes = {
            "attention.wq": (dim, dim),
            "attention.wk": (kv_dim, dim),
            "attention.wv": (kv_dim, dim),
            "attention.wo": (dim, dim),
            "feed_forward.w1": (ffn, dim),
            "feed_forward.w2": (dim, ffn),
            "feed_forward.w3": (ffn, dim),
        }
        weights |= {f"layers.{layer}.{name}.weight": draw(*shape) for name, shape in shapes.items()}
        weights |= {f"layers.{layer}.{name}.weight": 1 + draw(dim) for name in ("attention_norm", "ffn_norm")}
    weights |= {"norm.weight": 1 + draw(dim), "output.weight": draw(sizes.vocabulary, dim)}
    return weights


def cut(name: str, weight: Tensor, rank: int, mp: int) -> Tensor:
    """Rank `rank`'s share of a weight, as in Llama 2's files: the embedding is cut along its columns."""
    part = name.split(".")[-2]
    dims = {"wo": 1, "w2": 1, "tok_embeddings": 1, "wq": 0, "wk": 0, "wv": 0, "w1": 0, "w3": 0, "output": 0}
    return weight.clone() if part not in dims else weight.chunk(mp, dims[part])[rank].clone()


def train_tokenizer(path: Path, vocabulary: int = VOCABULARY) -> None:
    """A SentencePiece model of `vocabulary` pieces, of the kind Llama 2 has (BPE with byte fallback)."""
    written = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(SENTENCES),
        model_writer=written,
        vocab_size=vocabulary,
        model_type="bpe",
        byte_fallback=True,
        character_coverage=1.0,
        minloglevel=2,
    )
    path.write_bytes(written.getvalue())


def write_shards(folder: Path, mp: int, sizes: Sizes = TINY, seed: int = 7, padded: bool = True) -> None:
    weights = whole_weights(sizes, seed)
    for rank in range(mp):
        shard = {name: cut(name, weight, rank, mp) for name, weight in weights.items()}
        # Llama 1 and 2 carry it; it can be computed, and is not used.
        shard["rope.freqs"] = 1 / 10000 ** (torch.arange(0, sizes.head_dim, 2) / sizes.head_dim)
        torch.save(shard, folder / (SHARD.format(rank) if padded else f"consolidated.{rank}.pth"))


def write_checkpoint(
    folder: Path, mp: int, sizes: Sizes = TINY, *, seed: int = 7, tokenizer: bytes | None = None, padded: bool = True
) -> Path:
    """A whole folder: params.json, the shards, and the tokenizer's file where it is given."""
    folder.mkdir(parents=True)
    (folder / "params.json").write_text(json.dumps(sizes.params()))
    write_shards(folder, mp, sizes, seed, padded)
    if tokenizer is not None:
        (folder / "tokenizer.model").write_bytes(tokenizer)
    return folder


def edit_shard(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Load a shard, let `change` work on it, and save what it returns, or the shard itself where that is None."""
    shard = torch.load(path, weights_only=True)
    changed = change(shard)
    torch.save(shard if changed is None else changed, path)


def edit_params(folder: Path, **changes: object) -> None:
    path = folder / "params.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def cut_short(path: Path, share: float) -> None:
    os.truncate(path, int(path.stat().st_size * share))


def flip_bit(path: Path, record: int) -> None:
    """Flip one bit in the middle of a tensor's bytes."""
    with zipfile.ZipFile(path) as archive:
        info = next(info for info in archive.infolist() if info.filename.endswith(f"/data/{record}"))
    with path.open("r+b") as file:
        file.seek(info.header_offset)
        name_bytes, extra_bytes = struct.unpack("<HH", file.read(30)[26:30])
        place = info.header_offset + 30 + name_bytes + extra_bytes + info.file_size // 2
        file.seek(place)
        byte = file.read(1)[0]
        file.seek(place)
        file.write(bytes([byte ^ 0x10]))


def rewrite_zip(path: Path, replaced: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> None:
    """Write the zip anew with some records (named without the leading folder) replaced."""
    with zipfile.ZipFile(path) as archive:
        records = {info.filename: archive.read(info) for info in archive.infolist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in records.items():
            short = name.partition("/")[2]
            chosen = compression if short in replaced else zipfile.ZIP_STORED
            archive.writestr(name, replaced.get(short, content), chosen)


class Payload:
    """Pickles as a call of os.system: whoever unpickles it runs the command."""

    def __init__(self, marker: Path) -> None:
        self.command = f"touch {marker}"

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.system, (self.command,)


def plant_payload_in_zip(path: Path, marker: Path) -> None:
    rewrite_zip(path, {"data.pkl": pickle.dumps({"tok_embeddings.weight": Payload(marker)}, protocol=2)})


def plant_payload_in_legacy(path: Path, marker: Path) -> None:
    """A file of before torch 1.6 (a bare pickle) whose table of tensors is a call."""
    torch.save({"tok_embeddings.weight": Payload(marker)}, path, _use_new_zipfile_serialization=False)


def zip_bomb(path: Path, record: int, inflated_bytes: int) -> None:
    """Replace a tensor's record by a deflated one of zeros: a small file that inflates without end."""
    with zipfile.ZipFile(path) as archive:
        records = {info.filename: archive.read(info) for info in archive.infolist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in records.items():
            if not name.endswith(f"/data/{record}"):
                archive.writestr(name, content)
                continue
            info = zipfile.ZipInfo(name)
            info.compress_type = zipfile.ZIP_DEFLATED
            info._compresslevel = zlib.Z_BEST_SPEED  # type: ignore[attr-defined]
            chunk = bytes(2**20)
            with archive.open(info, "w") as file:
                for _ in range(inflated_bytes // len(chunk)):
                    file.write(chunk)
