"""Write any checkpoint as a Hugging Face folder: safetensors, config.json, and a tokenizer that transformers opens.

Streaming and atomic as in `reshard.py`: memory holds one tensor, and a kill leaves no folder.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from model.checkpoint.checkpoint import Checkpoint
from model.checkpoint.loading import Progress, running_total
from model.checkpoint.new_folder import SMALL_FILE_BYTES, carry, check_destination, write_folder
from model.checkpoint.reading import WeightReader, hugging_face_rows, open_weights
from model.checkpoint.shard_writer import PlannedTensor
from model.checkpoint.strict_json import read_json_object
from model.cuts import Weight
from model.hugging_face.config import CONFIG, config_of, usual_context
from model.hugging_face.folder import INDEX, SINGLE_FILE
from model.hugging_face.names import hugging_face_name, is_turned
from model.hugging_face.safetensors_file import write_safetensors
from model.hugging_face.tokenizer_files import Untranslatable, tokenizer_files
from model.tokenizers.opening import find_tokenizer, open_tokenizer
from parallel.errors import RefusedError
from parallel.slices import Slice

_GENERATION = "generation_config.json"
_TOKENIZER, _TOKENIZER_JSON = "tokenizer.model", "tokenizer.json"
# What stands beside the weights and means the same in either layout; of the last three any suffix.
_CARRIED = (
    _TOKENIZER,
    _TOKENIZER_JSON,
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    _GENERATION,
    "chat_template.jinja",
)
_CARRIED_STEMS = ("LICENSE", "USE_POLICY", "README")
# Numbers compared at a time.
_COMPARED = 2**24


def write_hugging_face_folder(
    checkpoint: Checkpoint, destination: Path, progress: Progress | None = None, max_file_bytes: int = 5 * 10**9
) -> list[str]:
    """Write `checkpoint` to `destination`, which must not exist; notes on what the folder lacks.

    The numbers stay as they are, to the bit. One file, or several of at most `max_file_bytes` (or one tensor)
    with an index. RefusedError where the disk is too small, or a weight or the tokenizer is damaged.
    """
    check_destination(destination, 0, checkpoint.folder)
    notes: list[str] = []
    texts = _texts(checkpoint, notes)
    with open_weights(checkpoint) as reader:
        tied = is_tied(reader)
        weights = [weight for weight in checkpoint.weights if not (tied and weight.name == "output.weight")]
        files = _in_files([_plan(reader, weight) for weight in weights], max_file_bytes)
        total = sum(tensor.nbytes for tensors in files.values() for tensor in tensors)
        check_destination(destination, total, checkpoint.folder)
        texts[CONFIG]["tie_word_embeddings"] = tied
        if len(files) > 1:
            texts[INDEX] = _index(files, total)
        write_folder(
            destination, lambda partial: _fill(partial, checkpoint, files, texts, running_total(total, progress))
        )
    return notes


def _fill(
    partial: Path,
    checkpoint: Checkpoint,
    files: Mapping[str, Sequence[PlannedTensor]],
    texts: Mapping[str, object],
    wrote: Callable[[int], None],
) -> None:
    for path in _carried(checkpoint.folder):
        carry(path, partial)
    for name, tensors in files.items():
        # transformers 4 refuses a file that does not say this.
        write_safetensors(partial / name, tensors, {"format": "pt"}, wrote)
    for name, content in texts.items():
        indent = None if name == _TOKENIZER_JSON else 2
        (partial / name).write_text(json.dumps(content, indent=indent) + "\n", encoding="utf-8")


def _plan(reader: WeightReader, weight: Weight) -> PlannedTensor:
    head_dim = reader.checkpoint.params.head_dim if is_turned(weight.name) else 0

    def make() -> Tensor:
        whole = reader.read(weight, Slice(0, weight.length))
        return hugging_face_rows(whole, head_dim) if head_dim else whole

    return PlannedTensor(hugging_face_name(weight.name), weight.shape, _dtype(reader.checkpoint, weight.name), make)


def _dtype(checkpoint: Checkpoint, name: str) -> torch.dtype:
    dtype = getattr(torch, checkpoint.pieces[name][0].entry.dtype)
    assert isinstance(dtype, torch.dtype)
    return dtype


def _in_files(tensors: Sequence[PlannedTensor], max_file_bytes: int) -> dict[str, list[PlannedTensor]]:
    """The tensors dealt out to files in their order, and each file's name."""
    groups: list[list[PlannedTensor]] = [[]]
    held = 0
    for tensor in tensors:
        if groups[-1] and held + tensor.nbytes > max_file_bytes:
            groups.append([])
            held = 0
        groups[-1].append(tensor)
        held += tensor.nbytes
    if len(groups) == 1:
        return {SINGLE_FILE: groups[0]}
    return {f"model-{number:05d}-of-{len(groups):05d}.safetensors": group for number, group in enumerate(groups, 1)}


def _index(files: Mapping[str, Sequence[PlannedTensor]], total: int) -> dict[str, Any]:
    placed = {tensor.name: name for name, tensors in files.items() for tensor in tensors}
    return {"metadata": {"total_size": total}, "weight_map": dict(sorted(placed.items()))}


def is_tied(reader: WeightReader) -> bool:
    """True where output.weight is tok_embeddings.weight bit for bit. Memory holds one of them, and a part."""
    checkpoint = reader.checkpoint
    embedding, output = (w for w in checkpoint.weights if w.name in ("tok_embeddings.weight", "output.weight"))
    if checkpoint.tied:
        return True
    if _dtype(checkpoint, embedding.name) != _dtype(checkpoint, output.name) or _checksums_differ(checkpoint):
        return False
    whole = reader.read(embedding, Slice(0, embedding.length))
    bits = {4: torch.int32, 2: torch.int16}[whole.element_size()]
    rows = max(1, _COMPARED // checkpoint.params.dim)
    for start in range(0, output.length, rows):
        part = Slice(start, min(start + rows, output.length))
        if not torch.equal(reader.read(output, part).view(bits), whole[part.start : part.stop].view(bits)):
            return False
    return True


def _checksums_differ(checkpoint: Checkpoint) -> bool:
    """True where the files' own checksums tell already that the two weights are not the same."""
    one, other = (
        [piece.entry for piece in checkpoint.pieces[f"{name}.weight"]] for name in ("tok_embeddings", "output")
    )
    sums = [[entry.own_crc32 for entry in entries] for entries in (one, other)]
    alike = [entry.shape for entry in one] == [entry.shape for entry in other]
    cut_alike = len(one) == 1 or checkpoint.embedding_dim == 0
    return alike and cut_alike and None not in (*sums[0], *sums[1]) and sums[0] != sums[1]


def _texts(checkpoint: Checkpoint, notes: list[str]) -> dict[str, dict[str, Any]]:
    """The JSON files that are made, by name: config.json, and what of tokenizer and generation is not carried along."""
    folder = checkpoint.folder
    carried = {path.name for path in _carried(folder)}
    texts: dict[str, dict[str, Any]] = {}
    if not carried & {_TOKENIZER, _TOKENIZER_JSON}:
        notes.append(f"{folder}: has no tokenizer; put its files into the new folder yourself")
    elif _TOKENIZER_JSON not in carried:
        path = next(path for path in _carried(folder) if path.name == _TOKENIZER)
        try:
            made = tokenizer_files(path, usual_context(checkpoint.params))
        except Untranslatable as reason:
            made = {}
            notes.append(f"{path}: is {reason}, so no {_TOKENIZER_JSON} was made of it; it was carried along as it is")
        texts = {name: content for name, content in made.items() if name not in carried}
    if checkpoint.layout == "hf":
        # Its own, since it may say what ours does not know of.
        return {**texts, CONFIG: read_json_object(folder / CONFIG, "{}")}
    ends = _end_tokens(folder, notes)
    texts[CONFIG] = config_of(checkpoint.params, checkpoint.dtype, False, ends)
    if _GENERATION not in carried:
        texts[_GENERATION] = {"_from_model_config": True, **ends}
    return texts


def _carried(folder: Path) -> list[Path]:
    """The small files that go along: the tokenizer's (which Meta's downloads have above the shards), and papers."""
    found = [
        path
        for path in sorted(folder.iterdir())
        if (path.name in _CARRIED or path.stem in _CARRIED_STEMS) and path.is_file()
    ]
    tokenizer = find_tokenizer(folder)
    if tokenizer is not None and tokenizer.is_file() and tokenizer.name not in {path.name for path in found}:
        found.append(tokenizer)
    return [path for path in found if path.stat().st_size <= SMALL_FILE_BYTES]


def _end_tokens(folder: Path, notes: list[str]) -> dict[str, object]:
    """bos_token_id and eos_token_id, as the tokenizer has them; empty where it is not known."""
    path = find_tokenizer(folder)
    if path is None:
        return {}
    try:
        tokenizer = open_tokenizer(path)
    except RefusedError as error:
        if path.name != _TOKENIZER_JSON:
            raise
        # It takes a package that may be missing, and is carried along either way.
        notes.append(f"{error}; bos_token_id and eos_token_id are left out")
        return {}
    ends = [tokenizer.eos_id, *sorted(tokenizer.chat_stop_ids - {tokenizer.eos_id})]
    return {"bos_token_id": tokenizer.bos_id, "eos_token_id": ends[0] if len(ends) == 1 else ends}
