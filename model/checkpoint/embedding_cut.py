"""How Meta cuts the embedding, where a folder's files do not say: they hold it whole."""

from pathlib import Path

from model.checkpoint.files import open_regular
from model.tokenizers.opening import find_tokenizer, is_tiktoken
from parallel.errors import RefusedError

_MAX_BYTES = 2**28


def usual_embedding_dim(folder: Path) -> int:
    """0 (the vocabulary) as in Llama 3 and later, 1 (the width) as in Llama 1, 2 and Code Llama.

    Told by the tokenizer, which changed with the cut: SentencePiece stands for 1, and so does none, or one
    that cannot be read (whoever reads it says why).
    """
    path = find_tokenizer(folder)
    if path is None:
        return 1
    try:
        if path.suffix == ".json":
            # Only a tokenizer that was made from SentencePiece falls back to bytes.
            with open_regular(path) as file:
                compact = file.read(_MAX_BYTES).replace(b" ", b"")
            return 1 if b'"byte_fallback":true' in compact else 0
        return 0 if is_tiktoken(path) else 1
    except (RefusedError, OSError):
        return 1
