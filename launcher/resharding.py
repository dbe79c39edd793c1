"""The `reshard` command: from its options to a new folder."""

from pathlib import Path

from launcher.options import ReshardOptions
from model.checkpoint import open_checkpoint
from model.loading import Progress
from model.reshard import one_embedding_dim, reshard
from model.tokenizer import find_tokenizer, is_tiktoken
from parallel.errors import RefusedError


def reshard_folder(source: Path, destination: Path, options: ReshardOptions, progress: Progress) -> str:
    """Cut `source` anew into `destination`; a sentence on what was written."""
    checkpoint = open_checkpoint(source, options.allow_legacy)
    if checkpoint.mp == 1:
        tokenizer = find_tokenizer(source)
        usual = 0 if tokenizer is not None and is_tiktoken(tokenizer) else 1
        chosen = usual if options.embedding_dim is None else options.embedding_dim
        checkpoint = one_embedding_dim(checkpoint, chosen)
    elif options.embedding_dim not in (None, checkpoint.embedding_dim):
        raise RefusedError(
            f"{source}: its embedding is cut along dimension {checkpoint.embedding_dim}; "
            f"--embedding_dim {options.embedding_dim} "
            "can be chosen only where SRC is a single file: reshard to --mp 1 first"
        )
    reshard(checkpoint, destination, options.mp, progress)
    return (
        f"{destination}: {options.mp} shard{'s' if options.mp > 1 else ''}, tok_embeddings cut along "
        f"dimension {checkpoint.embedding_dim}"
    )
