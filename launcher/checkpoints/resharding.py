"""The `reshard` command: from its options to a new folder."""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

from launcher.console import ProgressLine, say
from launcher.ranks.report import stop_on_signals
from launcher.settings.flags import reshard_options
from launcher.settings.options import ReshardOptions
from model.checkpoint.checkpoint import Checkpoint
from model.checkpoint.embedding_cut import usual_embedding_dim
from model.checkpoint.opening import open_checkpoint
from parallel.environment import Environment
from parallel.errors import RefusedError


def reshard_command(words: Sequence[str], flags: Mapping[str, str], env: Environment, _arguments: Sequence[str]) -> int:
    """Run `reshard SRC DST --mp N`; the exit code."""
    if len(words) != 2:
        raise RefusedError(f"reshard wants two folders, SRC and DST, and was given {len(words)}")
    options = reshard_options(flags)
    if env.world_size > 1:
        raise RefusedError("reshard runs in one process; start it without torchrun")
    written = reshard_folder(Path(words[0]), Path(words[1]), options, "resharding")
    say(f"wrote {written}")
    return 0


def reshard_folder(source: Path, destination: Path, options: ReshardOptions, doing: str) -> str:
    """Cut `source` anew into `destination`; a sentence on what was written. `doing`: how progress is headed."""
    checkpoint = _with_embedding_dim(open_checkpoint(source, options.allow_legacy), options.embedding_dim)
    from model.checkpoint.reshard import write_meta_folder  # loads torch: only now, when the source is known to be good

    stop_on_signals()
    for note in checkpoint.notes:
        say(f"note: {note}")
    with with_small_files(checkpoint) as whole:
        write_meta_folder(whole, destination, options.mp, ProgressLine(doing, "GB", 1e9))
    shards = f"{options.mp} shard{'s' if options.mp > 1 else ''}"
    return f"{destination}: {shards}, tok_embeddings cut along dimension {checkpoint.embedding_dim}"


def _with_embedding_dim(checkpoint: Checkpoint, asked: int | None) -> Checkpoint:
    """A single file does not say how to cut its embedding; its tokenizer tells what is usual."""
    if checkpoint.mp == 1 and asked is None:
        usual = usual_embedding_dim(checkpoint.folder) if checkpoint.layout == "meta" else checkpoint.embedding_dim
        return checkpoint.with_embedding_dim(usual)
    if checkpoint.mp == 1 and asked is not None:
        return checkpoint.with_embedding_dim(asked)
    if asked not in (None, checkpoint.embedding_dim):
        raise RefusedError(
            f"{checkpoint.folder}: its embedding is cut along dimension {checkpoint.embedding_dim}; "
            f"--embedding_dim {asked} can be chosen only where SRC is a single file: reshard to --mp 1 first"
        )
    return checkpoint


def with_small_files(checkpoint: Checkpoint) -> AbstractContextManager[Checkpoint]:
    """The checkpoint with a folder beside its weights; a GGUF file holds the tokenizer within."""
    if checkpoint.layout != "gguf":
        return nullcontext(checkpoint)
    from model.gguf.folder import unpacked  # most checkpoints do not need it

    return unpacked(checkpoint)
