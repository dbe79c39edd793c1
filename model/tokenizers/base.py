"""What every tokenizer can do, whatever its file is, and text from a stream of tokens."""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path

from parallel.errors import RefusedError

_REPLACEMENT = "\ufffd"
# More pending tokens than any character has bytes: beyond, the bytes are no character.
_LONGEST_CHARACTER = 4
# The ends of an answer and of a message that a tool answers: Llama 3, and 3.1 and later.
_ENDS_OF_TURN = ("<|eot_id|>", "<|eom_id|>")


class Tokenizer(ABC):
    """Text to ids and back, as Meta's `llama.tokenizer.Tokenizer`. `pad_id` may be -1: never give it to the model."""

    # What the file is, in words: "SentencePiece".
    kind: str
    path: Path
    # One more than the largest id.
    n_words: int
    bos_id: int
    eos_id: int
    pad_id: int
    # Ids of the control tokens by their text, such as <|eot_id|>; none of them comes out of a user's text.
    specials: Mapping[str, int]
    # What ends a completion: eos, and what else the files say does.
    stop_ids: frozenset[int]
    # An embedding may have rows without a token, up to a multiple of a power of two that is at most this.
    padding: int = 1

    @property
    def chat_stop_ids(self) -> frozenset[int]:
        """What ends an answer of a chat: `stop_ids`, and the ends of a turn where there are such tokens."""
        return self.stop_ids | {self.specials[name] for name in _ENDS_OF_TURN if name in self.specials}

    def digest(self) -> str:
        """The SHA-256 of the file."""
        return hashlib.sha256(self.path.read_bytes()).hexdigest()

    def check_vocabulary(self, rows: int) -> None:
        """Refuse a model whose embedding has another number of rows."""
        if rows in {self._padded(1 << power) for power in range(self.padding.bit_length())}:
            return
        padded = f" (or padded, at most {self._padded(self.padding)})" if self.padding > 1 else ""
        other = self.path.with_name("tokenizer.json")
        hint = ", such as tokenizer.json beside it" if other != self.path and other.exists() else ""
        raise RefusedError(
            f"{self.path}: has {self.n_words} pieces{padded}, but the model's embedding has {rows} rows; "
            f"the tokenizer is another model's: give the right one with --tokenizer_path{hint}"
        )

    def encode(self, text: str, bos: bool, eos: bool) -> list[int]:
        """Ids of `text`, with bos before and eos behind where asked for. Control tokens in `text` are plain text.

        RefusedError where `text` holds half a surrogate pair.
        """
        check_text(text)
        return [self.bos_id] * bos + self._encode(text) + [self.eos_id] * eos

    def decode(self, ids: Sequence[int] | int) -> str:
        """Text of `ids`; control tokens are silent, and bytes that are no character become U+FFFD.

        RefusedError for an id that the tokenizer does not have.
        """
        tokens = [ids] if isinstance(ids, int) else list(ids)
        for token in (min(tokens), max(tokens)) if tokens else ():
            if not 0 <= token < self._padded(self.padding):
                raise RefusedError(
                    f"{self.path}: asked for the text of token {token}; its tokens are 0 to {self.n_words - 1}"
                )
        return self._decode(tokens)

    @abstractmethod
    def _encode(self, text: str) -> list[int]: ...

    @abstractmethod
    def _decode(self, ids: list[int]) -> str: ...

    def _padded(self, multiple: int) -> int:
        return -(-self.n_words // multiple) * multiple


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

    Only the last few tokens are kept and decoded anew, so a token costs the same however long the text is.
    (Not so in a run of broken bytes, and before the first text: those are kept whole.)
    """

    def __init__(self, tokenizer: Tokenizer, context: Sequence[int] = ()) -> None:
        self._tokenizer = tokenizer
        self._ids = list(context)
        text = tokenizer.decode(self._ids)
        self._given = len(text)
        self._forget(text)

    def push(self, token: int) -> str:
        """The text that `token` completes; empty while a character lacks bytes."""
        self._ids.append(token)
        text = self._tokenizer.decode(self._ids)
        whole = text.rstrip(_REPLACEMENT)
        if len(text) - len(whole) > _LONGEST_CHARACTER:
            whole = text[: len(text) - _LONGEST_CHARACTER]
        fresh = whole[self._given :]
        self._given = max(self._given, len(whole))
        self._forget(text)
        return fresh

    def finish(self) -> str:
        """What is left at the end: bytes that never became a character, as U+FFFD."""
        text = self._tokenizer.decode(self._ids)
        fresh = text[self._given :]
        self._given = len(text)
        return fresh

    def _forget(self, text: str) -> None:
        """Where the text ends in a whole character, keep only as many of the last tokens as are a text themselves.

        What follows a text that ends in a whole character does not depend on how that text began: but it
        does on whether there was any, because a space that comes first of all is dropped.
        """
        if not _ends_whole(text):
            return
        if self._tokenizer.decode(self._ids[:-1]) == text:
            self._ids.pop()  # a silent token
        count = 1
        while count < len(self._ids) and not _ends_whole(self._tokenizer.decode(self._ids[-count:])):
            count *= 2
        self._ids = self._ids[-count:]
        self._given = len(self._tokenizer.decode(self._ids))


def _ends_whole(text: str) -> bool:
    return text != "" and not text.endswith(_REPLACEMENT)
