"""A tokenizer that needs no file: a token is bytes, any bytes, and text is UTF-8 of them all."""

from collections.abc import Sequence
from pathlib import Path

from model.tokenizers.base import Tokenizer

# Parts of characters and several at once, white space, and the character that broken bytes become.
PIECES = [
    b"\xf0\x9f",
    b"\x98\x80",
    b"\xe2\x82",
    b"\xaca",
    b"ab",
    b"bc\xc3",
    b"\xa9 ",
    b"  ",
    b"\xef\xbf\xbd",
    b"\xff\xff",
]


class ByteTokenizer(Tokenizer):
    """Ids 0 to 255 are the bytes, then come `pieces`, and last bos and eos, which are silent."""

    kind = "bytes"

    def __init__(self, pieces: Sequence[bytes] = PIECES) -> None:
        self.path = Path("bytes")
        self.tokens = [*(bytes([byte]) for byte in range(256)), *pieces]
        self.bos_id, self.eos_id, self.pad_id = len(self.tokens), len(self.tokens) + 1, -1
        self.n_words = len(self.tokens) + 2
        self.specials = {"<bos>": self.bos_id, "<eos>": self.eos_id}
        self.stop_ids = frozenset({self.eos_id})

    def _encode(self, text: str) -> list[int]:
        return list(text.encode("utf-8"))

    def _decode(self, ids: list[int]) -> str:
        return b"".join(self.tokens[token] for token in ids if token < self.bos_id).decode("utf-8", errors="replace")
