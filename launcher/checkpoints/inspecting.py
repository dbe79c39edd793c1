"""The `inspect` command: what a checkpoint folder holds."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict

from launcher.checkpoints.inspection_text import inspection_text
from launcher.console import ProgressLine, print_result
from launcher.ranks.report import stop_on_signals
from launcher.settings.flags import inspect_options
from launcher.settings.options import InspectOptions
from model.checkpoint.opening import open_checkpoint
from model.inspection.headers import inspect_checkpoint
from model.inspection.report import Inspection
from parallel.environment import Environment
from parallel.errors import RefusedError


def inspect_command(words: Sequence[str], flags: Mapping[str, str], env: Environment, _arguments: Sequence[str]) -> int:
    """Run `inspect CKPT_DIR`; the exit code."""
    options = inspect_options(flags)
    if len(words) != 1:
        raise RefusedError(f"inspect wants one folder, CKPT_DIR, and was given {len(words)}")
    if env.world_size > 1:
        raise RefusedError("inspect runs in one process; start it without torchrun")
    report = inspect_folder(words[0], options)
    print_result(json.dumps(asdict(report)) + "\n" if options.json else inspection_text(report))
    return 0


def inspect_folder(folder: str, options: InspectOptions) -> Inspection:
    """What the folder holds. RefusedError says what is wrong with it."""
    checkpoint = open_checkpoint(folder, options.allow_legacy)
    if not options.deep:
        return inspect_checkpoint(checkpoint)
    from model.inspection.deep_reading import read_deeply  # loads torch: only now, when numbers are to be read

    stop_on_signals()
    return inspect_checkpoint(checkpoint, read_deeply(checkpoint, ProgressLine("reading", "GB", 1e9)))
