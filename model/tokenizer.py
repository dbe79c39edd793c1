"""SentencePiece tokenizers, and text from a stream of tokens. The one door to sentencepiece."""

import base64
import binascii
import hashlib
from collections.abc import Sequence
from pathlib import Path

import sentencepiece

from model.shard_file import describe_start, open_regular
from parallel.errors import RefusedError

TOKENIZER = "tokenizer.model"
_REPLACEMENT = "\ufffd"
# More pending tokens than any character has bytes: beyond, the bytes are no character.
_LONGEST_CHARACTER = 4


def find_tokenizer(ckpt_dir: Path) -> Path | None:
    """tokenizer.model in the checkpoint folder, else in its parent (where Meta's downloads have it)."""
    for folder in (ckpt_dir, ckpt_dir.resolve().parent):
        if (folder / TOKENIZER).exists():
            return folder / TOKENIZER
    return None


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


class Tokenizer:
    """Text to ids and back, as Meta's `llama.tokenizer.Tokenizer`. `pad_id` is -1: never give it to the model."""

    def __init__(self, model_path: str | Path) -> None:
        path = Path(model_path)
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
        try:
            self.sp_model = sentencepiece.SentencePieceProcessor(model_file=str(path))
            self.n_words = int(self.sp_model.vocab_size())
            self.sp_model.encode("a")
        except Exception as error:  # sentencepiece raises RuntimeError, OSError and others of its own
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise RefusedError(f"{path}: is not a SentencePiece model ({reason}); download it again") from None
        self.path = path
        self.bos_id = int(self.sp_model.bos_id())
        self.eos_id = int(self.sp_model.eos_id())
        self.pad_id = int(self.sp_model.pad_id())

    def digest(self) -> str:
        """The SHA-256 of the file."""
        return hashlib.sha256(self.path.read_bytes()).hexdigest()

    def check_vocabulary(self, rows: int) -> None:
        """Refuse a model whose embedding has another number of rows."""
        if rows != self.n_words:
            raise RefusedError(
                f"{self.path}: has {self.n_words} pieces, but the model's embedding has {rows} rows; "
                "the tokenizer is another model's: give the right one with --tokenizer_path"
            )

    def encode(self, text: str, bos: bool, eos: bool) -> list[int]:
        """Ids of `text`, with bos before and eos behind where asked for."""
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            offset = len(text[: error.start].encode("utf-8"))
            raise RefusedError(
                f"the text has half a surrogate pair at byte {offset} ({text[error.start]!r}), which is no character; "
                "take it out, or read the text as UTF-8"
            ) from None
        ids: list[int] = self.sp_model.encode(text)
        return [self.bos_id] * bos + ids + [self.eos_id] * eos

    def decode(self, ids: Sequence[int] | int) -> str:
        """Text of `ids`; control tokens are silent."""
        text: str = self.sp_model.decode(ids if isinstance(ids, int) else list(ids))
        return text


class TextStream:
    """Text as tokens come: all pieces put together are `decode` of all tokens, never half a character.

    With `context`, tokens that stand before (a prompt), the text is what they are continued with, so a
    leading space is kept.
    """

    def __init__(self, tokenizer: Tokenizer, context: Sequence[int] = ()) -> None:
        self._tokenizer = tokenizer
        self._ids = list(context)
        self._given = len(tokenizer.decode(self._ids)) if self._ids else 0

    def push(self, token: int) -> str:
        """The text that `token` completes; empty while a character lacks bytes."""
        self._ids.append(token)
        return self._take(final=False)

    def finish(self) -> str:
        """What is left at the end: bytes that never became a character, as U+FFFD."""
        return self._take(final=True)

    def _take(self, final: bool) -> str:
        text = self._tokenizer.decode(self._ids)
        whole = text if final else text.rstrip(_REPLACEMENT)
        if len(text) - len(whole) > _LONGEST_CHARACTER:
            whole = text[: len(text) - _LONGEST_CHARACTER]
        fresh = whole[self._given :]
        self._given = max(self._given, len(whole))
        return fresh
