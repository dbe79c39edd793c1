"""What every tokenizer can do, whatever its file is, and text from a stream of tokens."""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path

from parallel.errors import RefusedError

_REPLACEMENT = "\ufffd"
# More pending tokens than any character has bytes: beyond, the bytes are no character.
_LONGEST_CHARACTER = 4


class Tokenizer(ABC):
    """Text to ids and back, as Meta's `llama.tokenizer.Tokenizer`. `pad_id` may be -1: never give it to the model."""

    # What the file is, in words: "SentencePiece".
    kind: str
    path: Path
    n_words: int
    bos_id: int
    eos_id: int
    pad_id: int
    # Ids of the control tokens by their text, such as <|eot_id|>; none of them comes out of a user's text.
    specials: Mapping[str, int]

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

    @abstractmethod
    def encode(self, text: str, bos: bool, eos: bool) -> list[int]:
        """Ids of `text`, with bos before and eos behind where asked for. Control tokens in `text` are plain text."""

    @abstractmethod
    def decode(self, ids: Sequence[int] | int) -> str:
        """Text of `ids`; control tokens are silent."""


def check_text(text: str) -> None:
    """Refuse half a surrogate pair, which no UTF-8 file holds; the message says at which byte."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        offset = len(text[: error.start].encode("utf-8"))
        raise RefusedError(
            f"the text has half a surrogate pair at byte {offset} ({text[error.start]!r}), which is no character; "
            "take it out, or read the text as UTF-8"
        ) from None


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
