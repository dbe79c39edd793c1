"""SentencePiece tokenizers (Llama 1, 2, Code Llama). The one door to sentencepiece."""

from collections.abc import Sequence
from pathlib import Path

import sentencepiece

from model.tokenizers.base import Tokenizer, check_text
from parallel.errors import RefusedError


class SentencePieceTokenizer(Tokenizer):
    """A `tokenizer.model` that is a SentencePiece model."""

    kind = "SentencePiece"

    def __init__(self, path: Path) -> None:
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
        self.specials = {}

    def encode(self, text: str, bos: bool, eos: bool) -> list[int]:
        check_text(text)
        ids: list[int] = self.sp_model.encode(text)
        return [self.bos_id] * bos + ids + [self.eos_id] * eos

    def decode(self, ids: Sequence[int] | int) -> str:
        text: str = self.sp_model.decode(ids if isinstance(ids, int) else list(ids))
        return text
