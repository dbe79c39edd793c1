"""tokenizer.json and tokenizer_config.json for a folder that has Meta's tokenizer.model.

transformers reads a tokenizer.model itself only with further packages, and Llama 3's not at all; a
tokenizer.json it reads always, and that is made here from the file's own tables.
"""

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from model.hugging_face.tokenizer_json import (
    VERSION,
    added_token,
    bos_first,
    byte_letters,
    byte_pairs,
    llama_3_json,
    merges_of,
)
from model.tokenizers.opening import open_tokenizer
from model.tokenizers.sentencepiece_file import INFILL_PIECES
from model.tokenizers.tiktoken_file import SPECIALS, TiktokenTokenizer, read_ranks

_SPACE = "\u2581"
# sentencepiece_model.proto: kinds of pieces, and of models.
_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED, _BYTE = range(1, 7)
_BPE = 2
# As many spaces as there are.
_ALL = 2**31


class Untranslatable(Exception):
    """A tokenizer that tokenizer.json cannot hold. The text completes 'is ...'."""


def tokenizer_files(path: Path, max_tokens: int) -> dict[str, dict[str, Any]]:
    """The content of tokenizer.json and tokenizer_config.json, by name, for a tokenizer.model of either kind.

    `max_tokens`: the longest text, which tokenizer_config.json holds. Raises Untranslatable, and RefusedError
    where the file is damaged.
    """
    sound = open_tokenizer(path)
    made, names = _of_tiktoken(path) if isinstance(sound, TiktokenTokenizer) else _of_sentencepiece(path)
    config = {"clean_up_tokenization_spaces": False, "model_max_length": max_tokens}
    return {
        "tokenizer.json": made,
        "tokenizer_config.json": {**names, **config, "tokenizer_class": "PreTrainedTokenizerFast"},
    }


def _of_tiktoken(path: Path) -> tuple[dict[str, Any], dict[str, str]]:
    ranks = read_ranks(path)
    letters = byte_letters()
    vocabulary = {"".join(letters[byte] for byte in token): rank for token, rank in ranks.items()}
    bos, eos = "<|begin_of_text|>", "<|end_of_text|>"
    added = [added_token(len(ranks) + place, name) for place, name in enumerate(SPECIALS)]
    bos_id = len(ranks) + SPECIALS.index(bos)
    made = llama_3_json(vocabulary, merges_of(vocabulary, vocabulary), added, bos, bos_id)
    return made, {"bos_token": bos, "eos_token": eos}


def _of_sentencepiece(path: Path) -> tuple[dict[str, Any], dict[str, str]]:
    try:
        model = _read_sentencepiece(path.read_bytes())
        bos, eos = model.pieces[model.bos].text, model.pieces[model.eos].text
    except (KeyError, IndexError, TypeError, struct.error, UnicodeDecodeError):
        raise Untranslatable("a SentencePiece model of another make than Llama's (its fields)") from None
    vocabulary = {piece.text: number for number, piece in enumerate(model.pieces)}
    normal = {
        piece.text: -piece.score for piece in model.pieces if piece.kind == _NORMAL and piece.text not in INFILL_PIECES
    }
    unknown = next(piece.text for piece in model.pieces if piece.kind == _UNKNOWN)
    added = [
        added_token(number, piece.text)
        for number, piece in enumerate(model.pieces)
        if piece.kind in (_UNKNOWN, _CONTROL) or piece.text in INFILL_PIECES
    ]
    steps = [{"type": "Replace", "pattern": {"String": _SPACE}, "content": " "}, {"type": "ByteFallback"}]
    steps += [{"type": "Fuse"}]
    if model.space_first or model.trims_spaces:
        steps += [{"type": "Strip", "content": " ", "start": _ALL if model.trims_spaces else 1, "stop": 0}]
    made = {
        **VERSION,
        "added_tokens": added,
        "normalizer": {"type": "Sequence", "normalizers": _normalizers(model)},
        "pre_tokenizer": None,
        "post_processor": bos_first(bos, model.bos),
        "decoder": {"type": "Sequence", "decoders": steps},
        "model": byte_pairs(
            vocabulary, merges_of(normal, vocabulary), unk_token=unknown, fuse_unk=True, byte_fallback=True
        ),
    }
    return made, {"bos_token": bos, "eos_token": eos, "unk_token": unknown}


def _normalizers(model: "_SentencePiece") -> list[dict[str, Any]]:
    """What is done to text, in SentencePiece's order (its normalizer.cc)."""
    trim = model.trims_spaces
    found = [_replace(r"\A +", ""), _replace(" {2,}", " ")] if trim else []
    if model.space_first:
        found += [{"type": "Prepend", "prepend": _SPACE}]
    found += [{"type": "Replace", "pattern": {"String": " "}, "content": _SPACE}]
    return [*found, _replace(rf"{_SPACE}+\z", "")] if trim else found


def _replace(pattern: str, content: str) -> dict[str, Any]:
    return {"type": "Replace", "pattern": {"Regex": pattern}, "content": content}


@dataclass(frozen=True, slots=True)
class _SentencePieceToken:
    text: str
    score: float
    kind: int


@dataclass(frozen=True, slots=True, kw_only=True)
class _SentencePiece:
    """What of a SentencePiece file decides ids (sentencepiece_model.proto)."""

    pieces: Sequence[_SentencePieceToken]
    bos: int
    eos: int
    space_first: bool
    trims_spaces: bool


def _read_sentencepiece(content: bytes) -> _SentencePiece:
    pieces: list[_SentencePieceToken] = []
    trainer: dict[int, Any] = {}
    normalizer: dict[int, Any] = {}
    for field, value in _fields(content):
        if field == 1:
            piece = dict(_fields(value))
            score = struct.unpack("<f", piece.get(2, bytes(4)))[0]
            pieces.append(_SentencePieceToken(piece[1].decode("utf-8"), score, piece.get(3, _NORMAL)))
        elif field in (2, 3):
            (trainer if field == 2 else normalizer).update(_fields(value))
    if trainer.get(3, 1) != _BPE:
        raise Untranslatable("a SentencePiece model that does not merge pairs (not BPE)")
    if not trainer.get(35, 0) or trainer.get(24, 0) or not normalizer.get(5, 1):
        raise Untranslatable("a SentencePiece model of another make than Llama's (its bytes or spaces)")
    if normalizer.get(2):
        # tokenizers has such tables too, but applies them to other units: some texts get other ids.
        raise Untranslatable("a SentencePiece model that rewrites characters, which Llama's do not")
    if any(piece.kind == _USER_DEFINED and piece.text not in INFILL_PIECES for piece in pieces):
        # tokenizers puts the space of a text's beginning behind such a word, SentencePiece before it.
        raise Untranslatable("a SentencePiece model with words of its user's")
    if any(piece.kind == _UNUSED for piece in pieces) or not any(piece.kind == _BYTE for piece in pieces):
        raise Untranslatable("a SentencePiece model with unused pieces, or without bytes")
    return _SentencePiece(
        pieces=pieces,
        bos=trainer.get(41, 1),
        eos=trainer.get(42, 2),
        space_first=bool(normalizer.get(3, 1)),
        trims_spaces=bool(normalizer.get(4, 1)),
    )


def _fields(message: bytes) -> Iterator[tuple[int, Any]]:
    """The fields of a protobuf message in order: numbers as int, the rest as bytes (protobuf.dev, encoding)."""
    place = 0
    while place < len(message):
        key, place = _varint(message, place)
        wire = key & 7
        if wire == 0:
            value, place = _varint(message, place)
            yield key >> 3, value
            continue
        size, place = _varint(message, place) if wire == 2 else ({1: 8, 5: 4}[wire], place)
        yield key >> 3, message[place : place + size]
        place += size


def _varint(message: bytes, place: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = message[place]
        value |= (byte & 0x7F) << shift
        place, shift = place + 1, shift + 7
        if byte < 0x80:
            return value, place
