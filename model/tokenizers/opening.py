"""Which tokenizer a folder has, and what kind of file it is, told by its content."""

import base64
import binascii
import os
import re
from pathlib import Path

from model.checkpoint.files import describe_start, open_regular
from model.tokenizers.base import Tokenizer
from model.tokenizers.json_file import JsonTokenizer
from model.tokenizers.sentencepiece_file import SentencePieceTokenizer
from model.tokenizers.tiktoken_file import TiktokenTokenizer
from parallel.errors import RefusedError

# tokenizer.model first: where a folder has both, they give the same ids, and it needs no further package. Hugging
# Face's folders of Llama 3 have Meta's file in a folder of its own, and Meta's downloads have it above the shards.
_IN_FOLDER = ("tokenizer.model", "tokenizer.json", "original/tokenizer.model")
_IN_PARENT = ("tokenizer.model", "tokenizer.json")
# No tokenizer is as large; weights are.
_MOST_BYTES = 256 * 2**20


def find_tokenizer(ckpt_dir: Path) -> Path | None:
    """The tokenizer's file of a checkpoint folder: tokenizer.model or tokenizer.json in it, else in its parent."""
    parent = ckpt_dir.resolve().parent
    candidates = [*(ckpt_dir / name for name in _IN_FOLDER), *(parent / name for name in _IN_PARENT)]
    # A link that leads nowhere counts: to be told of it is better than to be given another tokenizer.
    return next((path for path in candidates if os.path.lexists(path)), None)


def open_tokenizer(path: str | Path) -> Tokenizer:
    """The tokenizer in a file, of whatever kind. RefusedError says what is wrong with the file."""
    path = Path(path)
    with open_regular(path) as file:
        start = file.read(64)
        size = os.fstat(file.fileno()).st_size
    if not start:
        raise RefusedError(f"{path}: is empty (0 bytes); download it again")
    if size > _MOST_BYTES:
        raise RefusedError(f"{path}: has {size} bytes, which no tokenizer has; give the tokenizer's file")
    if (what := describe_start(start)) is not None:
        raise RefusedError(f"{path}: {what}")
    if re.match(rb'\s*\{\s*["}]', start):
        return JsonTokenizer(path)
    return TiktokenTokenizer(path) if is_tiktoken(path) else SentencePieceTokenizer(path)


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
