"""The tokenizer in a GGUF file's metadata, written as the file that it was made from.

"llama" is SentencePiece: tokens, scores and kinds are those of a tokenizer.model, in whose form
(sentencepiece_model.proto) they are written again. "gpt2" split as Llama 3 does is its byte-pair vocabulary:
a tokenizer.model of base64 and rank where that says the same, else a tokenizer.json.
"""

import base64
import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from model.gguf.byte_pairs import json_files, ranks_of
from model.gguf.container import read_container
from model.gguf.vocabulary import BYTE, CONTROL, UNKNOWN, Vocabulary
from model.tokenizers.opening import open_tokenizer
from parallel.errors import RefusedError

TOKENS = "tokenizer.ggml.tokens"
# llama.cpp's names of how Llama 3 parts text (src/llama-vocab.cpp).
_LLAMA_3 = ("llama-bpe", "llama3", "llama-v3")
_BPE = 2


def tokenizer_note(metadata: Mapping[str, Any]) -> str | None:
    """Why no tokenizer can be written, where that is so."""
    model, pre = _kind(metadata)
    if TOKENS not in metadata or model in ("none", "no_vocab"):
        return "holds no tokenizer; put the model's own into the new folder yourself"
    if model == "llama" or (model == "gpt2" and pre in _LLAMA_3):
        return None
    return (
        f"its tokenizer is of the kind {model[:40]!r}{f' ({pre[:40]!r})' if pre else ''}, which cannot be written as a "
        "file; put the model's own into the new folder yourself"
    )


def write_tokenizer(path: Path, folder: Path) -> str | None:
    """Write the tokenizer of a GGUF file into `folder`, and a chat template where there is one.

    The name of the tokenizer's file; None where there is none to write (see `tokenizer_note`). RefusedError
    where it is damaged.
    """
    metadata = read_container(path).metadata
    template = metadata.get("tokenizer.chat_template")
    if isinstance(template, str):
        (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
    if tokenizer_note(metadata) is not None:
        return None
    vocabulary = Vocabulary(path, metadata)
    model = folder / "tokenizer.model"
    if _kind(metadata)[0] == "llama":
        model.write_bytes(_sentencepiece(vocabulary))
    elif (ranks := ranks_of(vocabulary)) is not None:
        lines = (base64.b64encode(token) + f" {rank}\n".encode() for rank, token in enumerate(ranks))
        model.write_bytes(b"".join(lines))
    else:
        for name, content in json_files(vocabulary).items():
            (folder / name).write_text(json.dumps(content) + "\n", encoding="utf-8")
        return "tokenizer.json"
    try:
        open_tokenizer(model).check_vocabulary(len(vocabulary.tokens))
    except RefusedError as error:
        reason = str(error).removeprefix(f"{model}: ").rpartition("; ")[0]
        raise vocabulary.damaged(f"is broken: {reason}") from None
    return model.name


def _kind(metadata: Mapping[str, Any]) -> tuple[str, str]:
    """How the vocabulary is made, and how text is parted before it: llama.cpp's names."""
    return str(metadata.get("tokenizer.ggml.model", "none")), str(metadata.get("tokenizer.ggml.pre", ""))


def _sentencepiece(vocabulary: Vocabulary) -> bytes:
    """A SentencePiece model (ModelProto) of these tokens, which parts text as llama.cpp does: nothing rewritten."""
    scores = vocabulary.scores()
    # The usual ids as llama.cpp takes them.
    bos, eos, unknown = vocabulary.end("bos", 1), vocabulary.end("eos", 2), vocabulary.end("unknown", 0)
    kinds = list(vocabulary.kinds)
    # Some files forget it, and SentencePiece then has none.
    kinds[bos] = kinds[eos] = CONTROL
    kinds[unknown] = UNKNOWN
    pieces = b"".join(
        _field(1, _field(1, token.encode()) + _field(2, score) + _field(3, kind))
        for token, score, kind in zip(vocabulary.tokens, scores, kinds, strict=True)
    )
    trainer = {3: _BPE, 4: len(kinds), 35: int(BYTE in kinds), 40: unknown, 41: bos, 42: eos}
    names = {45 + place: vocabulary.tokens[token].encode() for place, token in enumerate((unknown, bos, eos))}
    spaces = {
        3: int(vocabulary.says("add_space_prefix", True)),
        4: int(vocabulary.says("remove_extra_whitespaces", False)),
        5: 1,
    }
    normalizer: dict[int, int | bytes] = {1: b"identity", **spaces}
    return pieces + _field(2, _fields({**trainer, **names})) + _field(3, _fields(normalizer))


def _fields(values: Mapping[int, int | bytes]) -> bytes:
    return b"".join(_field(number, value) for number, value in values.items())


def _field(number: int, value: int | float | bytes) -> bytes:
    """A field of a protobuf message (protobuf.dev, encoding)."""
    if isinstance(value, bytes):
        return _varint(number << 3 | 2) + _varint(len(value)) + value
    if isinstance(value, float):
        return _varint(number << 3 | 5) + struct.pack("<f", value)
    return _varint(number << 3) + _varint(value)


def _varint(value: int) -> bytes:
    groups = bytearray()
    while value > 0x7F:
        groups.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*groups, value])
