"""SentencePiece tokenizers (Llama 1, 2, Code Llama). The one door to sentencepiece."""

from pathlib import Path

import sentencepiece

from model.tokenizers.base import Tokenizer
from parallel.errors import RefusedError

# Code Llama's marks of the parts of a text to be filled in (codellama `tokenizer.py`).
INFILL_PIECES = ("\u2581<PRE>", "\u2581<MID>", "\u2581<SUF>", "\u2581<EOT>")


class SentencePieceTokenizer(Tokenizer):
    """A `tokenizer.model` that is a SentencePiece model. `specials` are Code Llama's marks where it has them."""

    kind = "SentencePiece"

    def __init__(self, path: Path) -> None:
        try:
            self.sp_model = sentencepiece.SentencePieceProcessor(model_file=str(path))
            self.n_words = int(self.sp_model.vocab_size())
            self.sp_model.encode("a")
        except Exception as error:  # sentencepiece raises RuntimeError, OSError and others of its own
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise RefusedError(
                f"{path}: is not a SentencePiece model ({reason}), nor Llama 3's lines, nor a JSON object; "
                "download it again"
            ) from None
        self.path = path
        self.bos_id = int(self.sp_model.bos_id())
        self.eos_id = int(self.sp_model.eos_id())
        if min(self.bos_id, self.eos_id) < 0:
            raise RefusedError(f"{path}: has no bos or no eos piece, which every Llama has; give another tokenizer")
        self.pad_id = int(self.sp_model.pad_id())
        self.stop_ids = frozenset({self.eos_id})
        unknown = int(self.sp_model.unk_id())
        found = {piece: int(self.sp_model.piece_to_id(piece)) for piece in INFILL_PIECES}
        self.specials = {piece: token for piece, token in found.items() if token != unknown}
        self._spelled = {token: self._spell(piece) for piece, token in self.specials.items()}

    def _encode(self, text: str) -> list[int]:
        ids: list[int] = self.sp_model.encode(text)
        if self._spelled.keys().isdisjoint(ids):
            return ids
        return [part for token in ids for part in self._spelled.get(token, [token])]

    def _decode(self, ids: list[int]) -> str:
        text: str = self.sp_model.decode([token for token in ids if token not in self._spelled])
        return text

    def _spell(self, piece: str) -> list[int]:
        """Ids of a mark's letters one by one: what the mark is in a user's text."""
        ids: list[int] = []
        for letter in piece:
            token = int(self.sp_model.piece_to_id(letter))
            fallback = [int(self.sp_model.piece_to_id(f"<0x{byte:02X}>")) for byte in letter.encode("utf-8")]
            ids += fallback if token == self.sp_model.unk_id() else [token]
        return ids
