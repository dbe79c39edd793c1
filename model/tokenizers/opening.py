"""Which tokenizer a folder has, and what kind of file it is, told by its content."""

import base64
import binascii
from pathlib import Path

from model.checkpoint.files import describe_start, open_regular
from model.tokenizers.base import Tokenizer
from model.tokenizers.sentencepiece_file import SentencePieceTokenizer
from parallel.errors import RefusedError

TOKENIZER = "tokenizer.model"


def find_tokenizer(ckpt_dir: Path) -> Path | None:
    """tokenizer.model in the checkpoint folder, else in its parent (where Meta's downloads have it)."""
    for folder in (ckpt_dir, ckpt_dir.resolve().parent):
        if (folder / TOKENIZER).exists():
            return folder / TOKENIZER
    return None


def open_tokenizer(path: str | Path) -> Tokenizer:
    """The tokenizer in a file, of whatever kind. RefusedError says what is wrong with the file."""
    path = Path(path)
    with open_regular(path) as file:
        start = file.read(64)
    if not start:
        raise RefusedError(f"{path}: is empty (0 bytes); download it again")
    if (what := describe_start(start)) is not None:
        raise RefusedError(f"{path}: {what}")
    if is_tiktoken(path):
        raise RefusedError(
            f"{path}: is a tiktoken file (Llama 3), and this version reads SentencePiece; through "
            "Python, Llama.build(..., "
            "tokenizer_path=None) and generate() work on ids, with this file out of the folder"
        )
    return SentencePieceTokenizer(path)


def is_tiktoken(path: Path) -> bool:
    """True for Llama 3's file: text lines of base64 and rank."""
    with open_regular(path) as file:
        fields = file.readline(4096).split()
    if len(fields) != 2 or not fields[1].isdigit():
        return False
    try:
        base64.b64decode(fields[0], validate=True)
    except binascii.Error:
        return False
    return True
