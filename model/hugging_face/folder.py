"""A folder in Hugging Face's layout: config.json and safetensors (or pytorch_model*.bin). Headers only; no torch."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from model.checkpoint.checkpoint import Checkpoint, Piece
from model.checkpoint.embedding_cut import usual_embedding_dim
from model.checkpoint.files import AGAIN, FileHeader, main_dtype
from model.checkpoint.legacy import read_legacy_header
from model.checkpoint.strict_json import read_json_object, shown
from model.checkpoint.torch_file import is_legacy, read_header
from model.cuts import Weight, all_weights
from model.hugging_face.config import CONFIG, LlamaConfig, read_config
from model.hugging_face.names import hugging_face_name, is_ignored, is_turned
from model.hugging_face.safetensors_file import read_safetensors_header
from parallel.errors import RefusedError
from parallel.slices import Slice

SINGLE_FILE = "model.safetensors"
INDEX = f"{SINGLE_FILE}.index.json"
# In the order in which transformers looks for them: a file alone, or an index of several.
_CANDIDATES = (SINGLE_FILE, INDEX, "pytorch_model.bin", "pytorch_model.bin.index.json")
_INDEX_BYTES = 2**26
_EMBEDDING, _OUTPUT = "tok_embeddings.weight", "output.weight"


@dataclass(frozen=True, slots=True)
class _Found:
    """Where each key of the weight files stands."""

    headers: tuple[FileHeader, ...]
    header_of: dict[str, FileHeader]


def open_hugging_face_folder(folder: Path, allow_legacy: bool = False) -> Checkpoint:
    """Read and check a folder's headers. RefusedError says what is wrong with it, and where.

    `allow_legacy`: read bare-pickle .bin files of torch before 1.6 too (their weights only, never code).
    """
    found = _find(folder, allow_legacy)
    config = read_config(folder / CONFIG)
    embedding_dim = usual_embedding_dim(folder)
    weights = all_weights(config.params, embedding_dim)
    keys = _keys_of(folder, weights, config, found)
    _check_no_others(config, keys, found)
    notes: list[str] = []
    dtype = main_dtype(folder, found.headers, notes)
    if config.dtype not in (None, dtype):
        notes.append(f"{folder / CONFIG}: says {config.dtype}, but the weights are {dtype}; dtype auto takes {dtype}")
    return Checkpoint(
        folder=folder,
        layout="hf",
        params=config.params,
        files=found.headers,
        pieces={weight.name: (_piece(weight, keys[weight.name], config, found),) for weight in weights},
        mp=1,
        embedding_dim=embedding_dim,
        dtype=dtype,
        notes=tuple(notes),
        tied=keys[_OUTPUT] == keys[_EMBEDDING],
    )


def _find(folder: Path, allow_legacy: bool) -> _Found:
    """The weight files of the folder, and what stands where."""
    name = next((name for name in _CANDIDATES if (folder / name).exists()), None)
    if name is None:
        raise RefusedError(f"{folder}: {_describe_foreign(folder)}")
    if not name.endswith(".json"):
        header = _read(folder / name, allow_legacy)
        return _Found((header,), dict.fromkeys(header.tensors, header))
    listed = _read_index(folder, name)
    headers = {file: _read(folder / file, allow_legacy) for file in sorted(set(listed.values()))}
    for key, file in listed.items():
        if key not in headers[file].tensors:
            raise RefusedError(
                f"{folder / file}: lacks {key}, which {name} says it holds; the files are of different models, or one "
                f"is damaged: {AGAIN}"
            )
    for file, header in headers.items():
        for key in header.tensors:
            if listed.get(key) != file:
                raise RefusedError(
                    f"{header.path}: holds {key}, which {name} "
                    + (f"places in {listed[key]}" if key in listed else "does not list")
                    + f"; the files are of different models: {AGAIN}"
                )
    return _Found(tuple(headers.values()), {key: headers[file] for key, file in listed.items()})


def _read(path: Path, allow_legacy: bool) -> FileHeader:
    """The header of a weight file, without the keys that are ignored."""
    if path.suffix == ".safetensors":
        header = read_safetensors_header(path)
    else:
        header = read_legacy_header(path) if allow_legacy and is_legacy(path) else read_header(path)
    used = {key: entry for key, entry in header.tensors.items() if not is_ignored(key)}
    return replace(header, tensors=used)


def _read_index(folder: Path, name: str) -> dict[str, str]:
    """Which file holds each key, as the index says. RefusedError where a file is missing."""
    path = folder / name
    listed: Any = read_json_object(path, '{"weight_map": {...}}', _INDEX_BYTES).get("weight_map")
    if not isinstance(listed, dict) or not listed:
        raise RefusedError(f"{path}: weight_map is {shown(listed)}; wanted a file's name for each weight; {AGAIN}")
    suffix = Path(name.removesuffix(".index.json")).suffix
    for key, file in listed.items():
        if not isinstance(file, str) or Path(file).name != file or not file.endswith(suffix):
            raise RefusedError(f"{path}: {key} is in {shown(file)}; wanted the name of a {suffix} file beside it")
    missing = [file for file in sorted(set(listed.values())) if not (folder / file).exists()]
    if missing:
        more = f" and {len(missing) - 8} more" if len(missing) > 8 else ""
        raise RefusedError(
            f"{folder}: {len(missing)} of {len(set(listed.values()))} files missing that {name} lists: "
            f"{', '.join(missing[:8])}{more}; get the missing files"
        )
    return {key: file for key, file in listed.items() if not is_ignored(key)}


def _describe_foreign(folder: Path) -> str:
    wanted = f"wanted {CONFIG} and {SINGLE_FILE}, or its parts with {INDEX}"
    try:
        names = sorted(entry.name for entry in folder.iterdir())
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    parts = [name for name in names if name.startswith(("model-", "pytorch_model-"))]
    if parts:
        return f"holds {parts[0]} but no index that says what stands where ({INDEX}); get it from the same source"
    return f"holds no weights; {wanted}; found {', '.join(names[:8])}{', ...' if len(names) > 8 else ''}"


def _keys_of(folder: Path, weights: Iterable[Weight], config: LlamaConfig, found: _Found) -> dict[str, str]:
    """The key that each weight stands under. RefusedError where one is missing or has another shape."""
    keys = {weight.name: hugging_face_name(weight.name) for weight in weights}
    if config.tied:
        # transformers ties either to the other, whichever is there.
        for absent, present in ((_OUTPUT, _EMBEDDING), (_EMBEDDING, _OUTPUT)):
            if keys[absent] not in found.header_of:
                keys[absent] = keys[present]
    missing = [key for key in keys.values() if key not in found.header_of]
    if missing:
        also = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        where = found.headers[0].path if len(found.headers) == 1 else folder
        raise RefusedError(f"{where}: {missing[0]}{also} missing{_why_missing(missing[0], config, found)}")
    for weight in weights:
        _check_shape(folder, weight, keys[weight.name], found)
    return keys


def _why_missing(key: str, config: LlamaConfig, found: _Found) -> str:
    if key.startswith("model.") and key.removeprefix("model.") in found.header_of:
        return (
            f", but {key.removeprefix('model.')} is there: the weights were saved without the layer that gives "
            "logits (LlamaModel); save them as LlamaForCausalLM"
        )
    if key == hugging_face_name(_OUTPUT) and not config.tied:
        return f", and tie_word_embeddings is false in {CONFIG}; write true if it is the embedding, or {AGAIN}"
    return f"; {AGAIN}"


def _check_shape(folder: Path, weight: Weight, key: str, found: _Found) -> None:
    header = found.header_of[key]
    shape = header.tensors[key].shape
    if shape != weight.shape:
        raise RefusedError(
            f"{header.path}: {key} has shape {list(shape)}; {folder / CONFIG} gives {list(weight.shape)}; "
            "they are of different models"
        )


def _check_no_others(config: LlamaConfig, keys: Mapping[str, str], found: _Found) -> None:
    used = set(keys.values())
    unknown = [key for key in found.header_of if key not in used]
    if unknown:
        also = f" and {len(unknown) - 1} more" if len(unknown) > 1 else ""
        layers = config.params.n_layers
        raise RefusedError(
            f"{found.header_of[unknown[0]].path}: holds {unknown[0]}{also}, which a Llama of {layers} layers with this "
            f"{CONFIG} does not have; the weights are of another model, or not a Llama"
        )


def _piece(weight: Weight, key: str, config: LlamaConfig, found: _Found) -> Piece:
    header = found.header_of[key]
    turned = config.params.head_dim if is_turned(weight.name) else 0
    return Piece(header, header.tensors[key], Slice(0, weight.length), turned)
