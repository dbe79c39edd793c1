"""Tiny tokenizer files of every kind, made without code of the three packages."""

import base64
import json
from pathlib import Path
from typing import Any

import sentencepiece
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

SENTENCES = """
The hare ran over the field and the tortoise walked behind it. A wind blew from the sea to the hills.
In the morning the baker made bread, in the evening the cat slept near the oven. Rain fell on the roof.
Numbers such as 12, 345 and 6789 stand in this text, and words like tree, stone, water, light and road.
It's late, they'll say; we've "seen" it.    Four spaces, a tab\tand an emoji 😀 stand here: naïve café, 東京.
"""
# Llama 3's, as llama3's tokenizer has it.
PATTERN = "|".join(
    (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)",
        r"[^\r\n\p{L}\p{N}]?\p{L}+",
        r"\p{N}{1,3}",
        r" ?[^\s\p{L}\p{N}]+[\r\n]*",
        r"\s*[\r\n]+",
        r"\s+(?!\S)",
        r"\s+",
    )
)
MERGES = 120
# Where the control tokens that have a name of their own in Llama 3.1 stand behind the ranks; the others are reserved.
NAMED = {
    "<|begin_of_text|>": 0,
    "<|end_of_text|>": 1,
    "<|finetune_right_pad_id|>": 4,
    "<|step_id|>": 5,
    "<|start_header_id|>": 6,
    "<|end_header_id|>": 7,
    "<|eom_id|>": 8,
    "<|eot_id|>": 9,
    "<|python_tag|>": 10,
}


def letters_of_bytes() -> dict[int, str]:
    """The letter that stands for each byte in Hugging Face's byte-level files (GPT-2's `bytes_to_unicode`)."""
    plain = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    rest = [byte for byte in range(256) if byte not in plain]
    return {byte: chr(byte) for byte in plain} | {byte: chr(256 + place) for place, byte in enumerate(rest)}


def train_ranks() -> list[bytes]:
    """Tokens by rank: the 256 bytes in an order of their own, then pairs as they were merged."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=256 + MERGES, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator([SENTENCES] * 3, trainer)
    bytes_of = {letter: byte for byte, letter in letters_of_bytes().items()}
    tokens = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    return [bytes(bytes_of[letter] for letter in token) for token, _ in tokens]


def tiktoken_lines(ranks: list[bytes]) -> list[bytes]:
    return [base64.b64encode(token) + f" {rank}\n".encode() for rank, token in enumerate(ranks)]


def write_tiktoken(path: Path, ranks: list[bytes]) -> Path:
    path.write_bytes(b"".join(tiktoken_lines(ranks)))
    return path


def added(number: int, content: str, special: bool = True) -> dict[str, Any]:
    how = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    return {"id": number, "content": content, **how, "special": special}


def all_splits(tokens: dict[Any, int]) -> list[tuple[Any, Any]]:
    """Every way in which a token is made of two others, by the rank of the token."""
    pairs = [(t[:cut], t[cut:]) for t in sorted(tokens, key=tokens.__getitem__) for cut in range(1, len(t))]
    return [pair for pair in pairs if pair[0] in tokens and pair[1] in tokens]


def llama3_json(ranks: list[bytes]) -> dict[str, Any]:
    """What tokenizer.json of Llama 3 looks like, for these ranks."""
    letter = letters_of_bytes()
    vocabulary = {"".join(letter[byte] for byte in token): rank for rank, token in enumerate(ranks)}
    names = {place: name for name, place in NAMED.items()}
    reserved = (f"<|reserved_special_token_{number}|>" for number in range(256))
    split = {"type": "Split", "pattern": {"Regex": PATTERN}, "behavior": "Isolated", "invert": False}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    return {
        "version": "1.0",
        "added_tokens": [added(len(ranks) + place, names.get(place) or next(reserved)) for place in range(256)],
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, byte_level]},
        "post_processor": None,
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "vocab": vocabulary,
            "merges": [list(pair) for pair in all_splits(vocabulary)],
            "ignore_merges": True,
        },
    }


def llama2_json(model: Path) -> dict[str, Any]:
    """What tokenizer.json of Llama 2 looks like, for the pieces of a SentencePiece model."""
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(model))
    vocabulary = {pieces.id_to_piece(token): token for token in range(pieces.vocab_size())}
    merged = {piece: token for piece, token in vocabulary.items() if not piece.startswith("<")}
    steps = [
        {"type": "Replace", "pattern": {"String": "\u2581"}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
        {"type": "Strip", "content": " ", "start": 1, "stop": 0},
    ]
    return {
        "version": "1.0",
        "added_tokens": [added(number, content) for number, content in enumerate(("<unk>", "<s>", "</s>"))],
        "normalizer": {
            "type": "Sequence",
            "normalizers": [
                {"type": "Prepend", "prepend": "\u2581"},
                {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"},
            ],
        },
        "pre_tokenizer": None,
        "post_processor": None,
        "decoder": {"type": "Sequence", "decoders": steps},
        "model": {
            "type": "BPE",
            "vocab": vocabulary,
            "merges": [list(pair) for pair in all_splits(merged)],
            "unk_token": "<unk>",
            "fuse_unk": True,
            "byte_fallback": True,
        },
    }


def write_json(path: Path, content: object) -> Path:
    path.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
    return path
