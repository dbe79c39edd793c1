"""A checkpoint and its tokenizer, looked at together before anything is loaded. No torch."""

from dataclasses import dataclass
from pathlib import Path

from model.checkpoint.checkpoint import Checkpoint
from model.checkpoint.opening import open_checkpoint
from model.tokenizers.base import Tokenizer
from model.tokenizers.opening import find_tokenizer, open_tokenizer
from parallel.errors import RefusedError


@dataclass(frozen=True, slots=True)
class Found:
    """What can be run; `notes` are what a user should know of it."""

    checkpoint: Checkpoint
    tokenizer: Tokenizer | None
    notes: tuple[str, ...]


def look(
    ckpt_dir: str, tokenizer_path: str | None, ranks: int, *, allow_legacy: bool = False, strict_mp: bool = False
) -> Found:
    """Check a checkpoint's headers, whether it can be cut for `ranks`, and whether the tokenizer is its own.

    `tokenizer_path=None` looks in `ckpt_dir` and its parent; there may be none. RefusedError says what is
    wrong and what to do.
    """
    checkpoint = open_checkpoint(ckpt_dir, allow_legacy)
    if checkpoint.layout == "gguf":
        target = checkpoint.folder.with_suffix("")
        raise RefusedError(
            f"{checkpoint.folder}: is a GGUF file, whose numbers are packed; unpack it first: shardrun convert "
            f"{checkpoint.folder} {target} --to meta"
        )
    note = checkpoint.check_mp(ranks, strict_mp)
    path = Path(tokenizer_path) if tokenizer_path is not None else find_tokenizer(checkpoint.folder)
    tokenizer = open_tokenizer(path) if path is not None else None
    if tokenizer is not None:
        tokenizer.check_vocabulary(checkpoint.params.vocab_size)
    return Found(checkpoint, tokenizer, (*checkpoint.notes, *([note] if note else [])))
