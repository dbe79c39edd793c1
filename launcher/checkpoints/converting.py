"""The `convert` command: from its options to a new folder in the other layout."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from launcher.checkpoints.resharding import reshard_folder, with_small_files
from launcher.console import ProgressLine, say
from launcher.ranks.report import stop_on_signals
from launcher.settings.flags import convert_options
from launcher.settings.options import ConvertOptions, ReshardOptions
from model.checkpoint.opening import open_checkpoint
from parallel.environment import Environment
from parallel.errors import RefusedError


def convert_command(words: Sequence[str], flags: Mapping[str, str], env: Environment, _arguments: Sequence[str]) -> int:
    """Run `convert SRC DST --to meta|hf`; the exit code."""
    if len(words) != 2:
        raise RefusedError(f"convert wants two folders, SRC and DST, and was given {len(words)}")
    options = convert_options(flags)
    if env.world_size > 1:
        raise RefusedError("convert runs in one process; start it without torchrun")
    for flag in ("mp", "embedding_dim"):
        value = getattr(options, flag)
        if options.to == "hf" and value is not None:
            raise RefusedError(
                f"--{flag} is {value}, but Hugging Face's files hold each weight whole; leave the flag out, or give "
                "--to meta"
            )
    say(f"wrote {convert_folder(Path(words[0]), Path(words[1]), options)}")
    return 0


def convert_folder(source: Path, destination: Path, options: ConvertOptions) -> str:
    """Write `source` to `destination` in the layout that is asked for; a sentence on what was written."""
    if options.to == "meta":
        cut = ReshardOptions(mp=options.mp or 1, embedding_dim=options.embedding_dim, allow_legacy=options.allow_legacy)
        return reshard_folder(source, destination, cut, "converting")
    checkpoint = open_checkpoint(source, options.allow_legacy)
    from model.hugging_face.writing import write_hugging_face_folder  # loads torch: only now, when the source is good

    stop_on_signals()
    for note in checkpoint.notes:
        say(f"note: {note}")
    with with_small_files(checkpoint) as whole:
        for note in write_hugging_face_folder(whole, destination, ProgressLine("converting", "GB", 1e9)):
            say(f"note: {note}")
    files = len(list(destination.glob("*.safetensors")))
    return f"{destination}: {files} safetensors file{'s' if files > 1 else ''} and config.json"
