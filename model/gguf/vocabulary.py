"""The vocabulary in a GGUF file's metadata: tokens, their kinds, merges and marks, checked against one another."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from parallel.errors import RefusedError

# Kinds of tokens, as SentencePiece numbers them (sentencepiece_model.proto), and llama.cpp after it.
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
# Of 32 bits.
_LARGEST = 3e38


class Vocabulary:
    """Tokens, their kinds, and what the metadata says besides, checked."""

    def __init__(self, path: Path, metadata: Mapping[str, Any]) -> None:
        self._path, self._metadata = path, metadata
        self.tokens = self._texts("tokens")
        self.kinds = self._numbers("token_type", int, NORMAL, BYTE)
        seen: dict[str, int] = {}
        for number, token in enumerate(self.tokens):
            if not token or seen.setdefault(token, number) != number:
                again = f"that of token {seen[token]} again" if token else "empty"
                raise self.damaged(f"is broken: token {number} is {again}")

    def scores(self) -> tuple[float, ...]:
        """The higher, the earlier a token is made of its parts."""
        return self._numbers("scores", float, -_LARGEST, _LARGEST)

    def _numbers(self, name: str, kind: type, low: float, high: float) -> tuple[Any, ...]:
        """The list tokenizer.ggml.`name`, one number for each token."""
        found = self._metadata.get(f"tokenizer.ggml.{name}")
        if not isinstance(found, tuple) or len(found) != len(self.tokens):
            raise self.damaged(f"lacks tokenizer.ggml.{name}, one number for each of its {len(self.tokens)} tokens")
        if {*map(type, found)} - {kind} or not all(low <= number <= high for number in found):
            raise self.damaged(f"is broken: tokenizer.ggml.{name} holds what is no number of {low:g} to {high:g}")
        return found

    def _texts(self, name: str) -> tuple[str, ...]:
        found = self._metadata.get(f"tokenizer.ggml.{name}")
        if not isinstance(found, tuple) or not all(type(text) is bytes for text in found):
            raise self.damaged(f"lacks tokenizer.ggml.{name}, a list of texts")
        try:
            return tuple(text.decode("utf-8") for text in found)
        except UnicodeDecodeError as error:
            raise self.damaged(f"is broken: tokenizer.ggml.{name} holds {error.object[:40]!r}, not UTF-8") from None

    def merges(self) -> list[str]:
        """Pairs in the order in which they are merged, a space between the two; each makes a token of two others."""
        merges = list(self._texts("merges"))
        known = set(self.tokens)
        for place, merge in enumerate(merges):
            left, space, right = merge.partition(" ")
            if not space or not {left, right, left + right} <= known:
                raise self.damaged(f"is broken: merge {place} is {merge[:40]!r}, which is not of its tokens")
        return merges

    def end(self, which: str, usual: int = -1) -> int:
        """The id of bos, eos or unknown; `usual` where the file does not say. RefusedError where there is no such."""
        found = self._metadata.get(f"tokenizer.ggml.{which}_token_id", usual)
        if type(found) is not int or not 0 <= found < len(self.tokens):
            raise self.damaged(f"is broken: {which}_token_id is {str(found)[:40]} of {len(self.tokens)} tokens")
        return found

    def says(self, name: str, usual: bool) -> bool:
        return bool(self._metadata.get(f"tokenizer.ggml.{name}", usual))

    def damaged(self, what: str) -> RefusedError:
        return RefusedError(f"{self._path}: its tokenizer {what}; get the file again")
