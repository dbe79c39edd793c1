"""A GGUF file of the llama architecture (llama.cpp's), as a checkpoint that can be converted. No torch.

Its tensors stand under names of its own. The rows of attn_q and attn_k stand in Meta's order, neighbours
(2i, 2i+1) turned together: llama.cpp's converter turns those of Hugging Face's files back (`permute`).
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from model.checkpoint.checkpoint import Checkpoint, Piece
from model.checkpoint.files import AGAIN, FileHeader, TensorEntry, main_dtype
from model.cuts import Weight, all_weights
from model.gguf.file import GgufFile, GgufHeader, Numbers, read_gguf
from model.gguf.params import params_of
from model.gguf.tokenizer import TOKENS, tokenizer_note, write_tokenizer
from parallel.errors import RefusedError
from parallel.slices import Slice

_NAMES = {"tok_embeddings": "token_embd", "norm": "output_norm", "output": "output"}
_LAYER_NAMES = {
    "attention.wq": "attn_q",
    "attention.wk": "attn_k",
    "attention.wv": "attn_v",
    "attention.wo": "attn_output",
    "feed_forward.w1": "ffn_gate",
    "feed_forward.w2": "ffn_down",
    "feed_forward.w3": "ffn_up",
    "attention_norm": "attn_norm",
    "ffn_norm": "ffn_norm",
}
_LAYER = re.compile(r"layers\.(\d+)\.(.+)\.weight")
_EMBEDDING, _OUTPUT, _DIVISORS = "token_embd.weight", "output.weight", "rope_freqs.weight"
# The rotary frequencies, which old converters stored: the metadata tells them.
_IGNORED = re.compile(r"rope\.freqs|blk\.\d+\.attn_rot_embd(\.weight)?")
_PART = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.gguf")
_MOST_PARTS = 9999


@dataclass(frozen=True, slots=True)
class _Found:
    """Every tensor of the file, or of all its parts. `where` names them in messages."""

    where: Path
    parts: tuple[GgufHeader, ...]
    entries: dict[str, TensorEntry]
    part_of: dict[str, GgufHeader]

    @property
    def metadata(self) -> dict[str, Any]:
        return self.parts[0].metadata

    def numbers(self, name: str) -> Numbers:
        """The numbers of a tensor of one dimension."""
        part = self.part_of[name]
        return GgufFile(part.file, part.blocks).numbers(name)


def gguf_name(name: str) -> str:
    """The GGUF name of the weight that Meta calls `name`."""
    layer = _LAYER.fullmatch(name)
    if layer is None:
        return f"{_NAMES[name.removesuffix('.weight')]}.weight"
    return f"blk.{layer[1]}.{_LAYER_NAMES[layer[2]]}.weight"


def open_gguf(path: Path) -> Checkpoint:
    """Read and check the headers of a GGUF file, or of all parts of a split one. RefusedError says what is wrong.

    The checkpoint's folder is the file itself (the first, of a split one). Its dtype is that of the matrices,
    where they are all F16 or all BF16, else float32; norms, which GGUF keeps in F32, have it too where that
    changes no number. So a file that was made of Meta's weights gives them back to the bit.
    """
    found = _find(path)
    shape = found.entries[_EMBEDDING].shape if _EMBEDDING in found.entries else (0,)
    params = params_of(found.where, found.metadata, shape[0], _divisors(found))
    _check_tokens(found, shape[0])
    # As Meta cut when it changed the tokenizer too: Llama 3 and later, against those before.
    embedding_dim = 0 if found.metadata.get("tokenizer.ggml.model") == "gpt2" else 1
    weights = all_weights(params, embedding_dim)
    names = _names_of(found, weights)
    found, notes = _in_one_dtype(found, names.values())
    files = tuple(part.file for part in found.parts)
    if (note := tokenizer_note(found.metadata)) is not None:
        notes.append(f"{found.where}: {note}")
    return Checkpoint(
        folder=found.where,
        layout="gguf",
        params=params,
        files=files,
        pieces={weight.name: (_piece(found, weight, names[weight.name]),) for weight in weights},
        mp=1,
        embedding_dim=embedding_dim,
        dtype=main_dtype(found.where, files, notes),
        notes=tuple(notes),
        tied=names["output.weight"] == _EMBEDDING,
    )


@contextmanager
def unpacked(checkpoint: Checkpoint) -> Iterator[Checkpoint]:
    """The same checkpoint, its folder one that holds the tokenizer's files, while the body runs.

    RefusedError where the tokenizer is damaged.
    """
    with TemporaryDirectory(prefix="shardrun-") as above:
        # In a folder of its own: a tokenizer is looked for one folder up as well.
        folder = Path(above) / checkpoint.folder.stem
        folder.mkdir()
        write_tokenizer(checkpoint.files[0].path, folder)
        yield replace(checkpoint, folder=folder)


def _piece(found: _Found, weight: Weight, name: str) -> Piece:
    return Piece(found.part_of[name].file, found.entries[name], Slice(0, weight.length))


def _find(path: Path) -> _Found:
    parts = _parts(path)
    entries: dict[str, TensorEntry] = {}
    part_of: dict[str, GgufHeader] = {}
    for part in parts:
        for name, entry in part.file.tensors.items():
            if name in entries:
                raise RefusedError(
                    f"{part.file.path}: holds {name}, which {part_of[name].file.path.name} holds as well; the parts "
                    f"are of different models: {AGAIN}"
                )
            entries[name], part_of[name] = entry, part
    return _Found(parts[0].file.path, tuple(parts), entries, part_of)


def _parts(path: Path) -> list[GgufHeader]:
    """The file, or all parts of the split file that it is one of (llama.cpp, tools/gguf-split)."""
    header = read_gguf(path)
    count = header.metadata.get("split.count", 0)
    if count in (0, 1):
        return [header]
    named = _PART.fullmatch(path.name)
    if type(count) is not int or count > _MOST_PARTS or named is None or int(named[3]) != count:
        raise RefusedError(
            f"{path}: says that it is one of {repr(count)[:40]} parts; wanted the name that it had, such as "
            "MODEL-00001-of-00003.gguf, by which the others are found: rename it back"
        )
    paths = [path.with_name(f"{named[1]}-{number:05d}-of-{named[3]}.gguf") for number in range(1, count + 1)]
    missing = [part.name for part in paths if not part.exists()]
    if missing:
        more = f" and {len(missing) - 8} more" if len(missing) > 8 else ""
        raise RefusedError(
            f"{path}: is one of {count} parts, and {len(missing)} of them missing beside it: "
            f"{', '.join(missing[:8])}{more}; get the missing files"
        )
    parts = [read_gguf(part) for part in paths]
    for number, part in enumerate(parts):
        said = part.metadata.get("split.no"), part.metadata.get("split.count")
        if said != (number, count):
            raise RefusedError(
                f"{part.file.path}: says that its split.no is {repr(said[0])[:20]} of {repr(said[1])[:20]}; wanted "
                f"{number} of {count}: it was renamed, or is of another model"
            )
    return parts


def _divisors(found: _Found) -> list[float] | None:
    """What the rotary frequencies are divided by, where the file says so."""
    entry = found.entries.get(_DIVISORS)
    if entry is None:
        return None
    if len(entry.shape) != 1:
        raise RefusedError(f"{found.where}: {_DIVISORS} has shape {list(entry.shape)}; wanted one dimension; {AGAIN}")
    return [float(number) for number in found.numbers(_DIVISORS)]


def _check_tokens(found: _Found, rows: int) -> None:
    tokens = found.metadata.get(TOKENS)
    if isinstance(tokens, tuple) and len(tokens) != rows:
        raise RefusedError(
            f"{found.where}: has {len(tokens)} tokens, but {_EMBEDDING} has {rows} rows; the file is damaged, or was "
            "put together of two: get it again"
        )


def _names_of(found: _Found, weights: Sequence[Weight]) -> dict[str, str]:
    """The name that each weight stands under. RefusedError where one is missing, has another shape, or is unknown."""
    names = {weight.name: gguf_name(weight.name) for weight in weights}
    if _OUTPUT not in found.entries:
        names["output.weight"] = _EMBEDDING
    missing = [name for name in names.values() if name not in found.entries]
    if missing:
        also = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise RefusedError(f"{found.where}: lacks {missing[0]}{also}; {AGAIN}")
    for weight in weights:
        name = names[weight.name]
        shape = found.entries[name].shape
        if shape != weight.shape:
            raise RefusedError(
                f"{found.part_of[name].file.path}: {name} has shape {list(shape)}; the metadata gives "
                f"{list(weight.shape)}; the file is damaged, or was put together of two: get it again"
            )
    known = {*names.values(), _DIVISORS}
    unknown = [name for name in found.entries if name not in known and not _IGNORED.fullmatch(name)]
    if unknown:
        also = f" and {len(unknown) - 1} more" if len(unknown) > 1 else ""
        raise RefusedError(
            f"{found.part_of[unknown[0]].file.path}: holds {unknown[0]}{also}, which a Llama of "
            f"{len(weights) // len(_LAYER_NAMES)} layers does not have; other models are not supported"
        )
    return names


def _in_one_dtype(found: _Found, names: Iterable[str]) -> tuple[_Found, list[str]]:
    """Entries that say what each weight is decoded to, for the weights only; and a note where they were quantised."""
    used = {name: found.entries[name] for name in names}
    dtypes = {entry.dtype for entry in used.values() if len(entry.shape) > 1}
    dtype = dtypes.pop() if len(dtypes) == 1 else "float32"
    entries = {
        name: entry if len(entry.shape) == 1 and not _holds(found, name, dtype) else replace(entry, dtype=dtype)
        for name, entry in used.items()
    }
    parts = {part.file.path: replace(part, file=_with(part.file, entries)) for part in found.parts}
    part_of = {name: parts[found.part_of[name].file.path] for name in entries}
    kinds = sorted({found.part_of[name].blocks[name].name for name in used} - {"F32", "F16", "BF16"})
    notes: list[str] = []
    if kinds:
        nbytes = sum(entry.nbytes for entry in entries.values())
        notes.append(f"{found.where}: its {' and '.join(kinds)} weights become {dtype}, {nbytes / 1e9:.3g} GB in all")
    return replace(found, parts=tuple(parts.values()), entries=entries, part_of=part_of), notes


def _with(header: FileHeader, entries: Mapping[str, TensorEntry]) -> FileHeader:
    return replace(header, tensors={name: entries[name] for name in header.tensors if name in entries})


def _holds(found: _Found, name: str, dtype: str) -> bool:
    """True where `dtype` holds every number of a norm as it is."""
    if dtype == "float32":
        return True
    numbers = found.numbers(name)
    if dtype == "bfloat16":
        return not bool((numbers.view(np.uint32) & 0xFFFF).any())
    with np.errstate(over="ignore"):
        return bool((numbers.astype(np.float16) == numbers).all())
