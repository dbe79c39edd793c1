"""The `reshard` command: from its options to a new folder."""

from collections.abc import Callable
from pathlib import Path

from launcher.options import ReshardOptions
from launcher.report import stop_on_signals
from model.checkpoint.meta_folder import Checkpoint, open_checkpoint
from model.tokenizers.opening import find_tokenizer, is_tiktoken
from parallel.errors import RefusedError


def reshard_folder(
    source: Path, destination: Path, options: ReshardOptions, progress: Callable[[int, int], None]
) -> str:
    """Cut `source` anew into `destination`; a sentence on what was written."""
    checkpoint = _with_embedding_dim(open_checkpoint(source, options.allow_legacy), options.embedding_dim)
    from model.checkpoint.reshard import reshard  # loads torch: only now, when the source is known to be good

    stop_on_signals()
    reshard(checkpoint, destination, options.mp, progress)
    shards = f"{options.mp} shard{'s' if options.mp > 1 else ''}"
    return f"{destination}: {shards}, tok_embeddings cut along dimension {checkpoint.embedding_dim}"


def _with_embedding_dim(checkpoint: Checkpoint, asked: int | None) -> Checkpoint:
    """A single file does not say how to cut its embedding: Llama 3 (tiktoken) cuts the vocabulary, others the width."""
    if checkpoint.mp == 1:
        tokenizer = find_tokenizer(checkpoint.folder)
        usual = 0 if tokenizer is not None and is_tiktoken(tokenizer) else 1
        return checkpoint.with_embedding_dim(usual if asked is None else asked)
    if asked not in (None, checkpoint.embedding_dim):
        raise RefusedError(
            f"{checkpoint.folder}: its embedding is cut along dimension {checkpoint.embedding_dim}; "
            f"--embedding_dim {asked} can be chosen only where SRC is a single file: reshard to --mp 1 first"
        )
    return checkpoint
