"""Hugging Face's `tokenizer.json`, and what the files beside it say of bos and eos. The one door to tokenizers.

The package is optional, and imported when such a file is met.
"""

import hashlib
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING

from model.checkpoint.files import describe_start, open_regular
from model.tokenizers.base import Tokenizer
from parallel.errors import RefusedError

if TYPE_CHECKING:
    import tokenizers

_NAMES = {"bos": ("<s>", "<|begin_of_text|>"), "eos": ("</s>", "<|end_of_text|>")}
# In the order in which they are asked: the first two name tokens, the others ids.
_NAMING_FILES = ("tokenizer_config.json", "special_tokens_map.json")
_NUMBERING_FILES = ("generation_config.json", "config.json")
# The chat's marks are control tokens even where the file forgot to say so.
_CHAT_MARKS = ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|eom_id|>")
_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")


class JsonTokenizer(Tokenizer):
    """A `tokenizer.json`. bos and eos: from the files beside it, else by Llama's names."""

    kind = "tokenizer.json"
    # As transformers' resize_token_embeddings(pad_to_multiple_of=...) is used.
    padding = 128

    def __init__(self, path: Path) -> None:
        self.path = path
        self._tokenizer = _load(path)
        vocabulary = self._tokenizer.get_vocab(with_added_tokens=True)
        if not vocabulary:
            raise RefusedError(f"{path}: has no tokens; download it again")
        self.n_words = max(vocabulary.values()) + 1
        beside = _Beside(path, vocabulary)
        bos, eos = beside.token("bos"), beside.token("eos")
        self._tokenizer.add_special_tokens([bos, eos, *(mark for mark in _CHAT_MARKS if mark in vocabulary)])
        # Otherwise a user who types <|eot_id|> ends his turn and speaks for somebody else.
        self._tokenizer.encode_special_tokens = True
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        added = self._tokenizer.get_added_tokens_decoder()
        self.specials = {str(token.content): int(number) for number, token in added.items() if token.special}
        self._silent = frozenset(self.specials.values())
        self.bos_id, self.eos_id, self.pad_id = vocabulary[bos], vocabulary[eos], -1
        # A default that config.json carries along may be the id of any word: only a control token ends a text.
        self.stop_ids = frozenset({self.eos_id, *beside.numbers("eos")} & self._silent)
        decoder = self._tokenizer.decoder
        self._falls_back_to_bytes = decoder is not None and decoder.decode(["<0x41>"]) == "A"

    def digest(self) -> str:
        """The SHA-256 of the file and of what the files beside it say."""
        said = f"{self.bos_id} {self.eos_id} {sorted(self.stop_ids)}"
        return hashlib.sha256(self.path.read_bytes() + said.encode()).hexdigest()

    def _encode(self, text: str) -> list[int]:
        return list(self._tokenizer.encode(text, add_special_tokens=False).ids)

    def _decode(self, ids: list[int]) -> str:
        if not self._falls_back_to_bytes:
            return str(self._tokenizer.decode(ids, skip_special_tokens=True))
        pieces = (self._tokenizer.id_to_token(token) for token in ids if token not in self._silent)
        return str(self._tokenizer.decoder.decode(_part_bytes([piece for piece in pieces if piece is not None])))


def _load(path: Path) -> "tokenizers.Tokenizer":
    try:
        import tokenizers
    except ImportError as error:
        raise RefusedError(
            f"{path}: reading a tokenizer.json needs the package tokenizers ({error}); "
            'install it with: pip install "shardrun[huggingface]", or give a tokenizer.model with --tokenizer_path'
        ) from None
    with open_regular(path) as file:
        content = file.read()
    try:
        return tokenizers.Tokenizer.from_str(content.decode("utf-8"))
    except Exception as error:  # tokenizers raises plain Exception
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise RefusedError(f"{path}: is not a Hugging Face tokenizer ({reason}); download it again") from None


class _Beside:
    """What the files beside a tokenizer.json say; each may be missing, and may be silent."""

    def __init__(self, path: Path, vocabulary: dict[str, int]) -> None:
        self._path = path
        self._vocabulary = vocabulary
        self._said = {name: _read_object(path.with_name(name)) for name in (*_NAMING_FILES, *_NUMBERING_FILES)}

    def token(self, which: str) -> str:
        """The text of the token `which`, "bos" or "eos"."""
        for name in _NAMING_FILES:
            named = self._said[name].get(f"{which}_token")
            named = named.get("content") if isinstance(named, dict) else named
            if named is None:
                continue
            if not isinstance(named, str) or named not in self._vocabulary:
                raise RefusedError(
                    f"{self._path.with_name(name)}: {which}_token is {named!r}, which {self._path.name} does not have; "
                    "the two are not of one model: download both again"
                )
            return named
        first = self.numbers(which)[:1]
        by_number = [text for text, number in self._vocabulary.items() if number in first]
        by_name = [text for text in _NAMES[which] if text in self._vocabulary]
        if not by_number + by_name:
            raise RefusedError(
                f"{self._path}: nothing says which token is {which}; put {which}_token into tokenizer_config.json "
                "beside it"
            )
        return (by_number + by_name)[0]

    def numbers(self, which: str) -> list[int]:
        """All ids that the files give for `which`."""
        found: list[int] = []
        for name in _NUMBERING_FILES:
            said = self._said[name].get(f"{which}_token_id")
            found += [number for number in (said if isinstance(said, list) else [said]) if isinstance(number, int)]
        return found


def _read_object(path: Path) -> dict[str, object]:
    """The JSON object in a file; empty where there is no file."""
    if not path.exists():
        return {}
    with open_regular(path) as file:
        content = file.read()
    if (what := describe_start(content[:64])) is not None:
        raise RefusedError(f"{path}: {what}")
    try:
        said = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise RefusedError(f"{path}: is not valid JSON ({error}); download it again") from None
    if not isinstance(said, dict):
        raise RefusedError(f"{path}: holds no JSON object; download it again")
    return said


def _part_bytes(pieces: list[str]) -> list[str]:
    """`pieces` with an empty one behind each character that is written in bytes.

    tokenizers makes U+FFFD of all bytes of a run that is not UTF-8 as a whole, so that one byte would undo the
    characters before it; parted, only the bytes that are no character become U+FFFD, as in SentencePiece.
    """
    parted: list[str] = []
    run = bytearray()
    for piece in pieces:
        if (match := _BYTE.fullmatch(piece)) is not None:
            run.append(int(match[1], 16))
            continue
        parted += _characters(bytes(run))
        run.clear()
        parted.append(piece)
    return parted + _characters(bytes(run))


def _characters(run: bytes) -> list[str]:
    parted: list[str] = []
    place = 0
    while place < len(run):
        size = next((size for size in (1, 2, 3, 4) if _is_character(run[place : place + size])), 1)
        parted += [*(f"<0x{byte:02X}>" for byte in run[place : place + size]), ""]
        place += size
    return parted


def _is_character(some: bytes) -> bool:
    try:
        return len(some.decode("utf-8")) == 1
    except UnicodeDecodeError:
        return False
