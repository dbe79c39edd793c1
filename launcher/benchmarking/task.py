"""What is to be measured, checked before anything heavy is loaded. No torch."""

import importlib.util
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from launcher.checkpoints.plan_source import Source, read_source
from launcher.settings.bench_options import BenchOptions
from launcher.settings.flags import convert_flags
from launcher.settings.options import PlanOptions
from launcher.settings.schema import settings_of
from model.planning.plan import MAX_SEQ_LEN
from model.split import check_ranks
from parallel.environment import Environment
from parallel.errors import RefusedError

BATCH_SIZES = (1, 8, 32)


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """What is to be measured: a model, at which MP sizes, with which batch sizes."""

    path: str
    options: BenchOptions
    source: Source
    sizes: tuple[int, ...]
    batches: tuple[int, ...]

    @property
    def notes(self) -> list[str]:
        """What a user should know of the model. Of files that are not there, only what a flag would change."""
        noted = self.source.assumed
        return noted if self.source.checkpoint is not None else [note for note in noted if "--" in note]

    @property
    def max_seq_len(self) -> int:
        return self.options.prompt_tokens + self.options.new_tokens


def read_task(words: Sequence[str], flags: Mapping[str, str], env: Environment) -> Task:
    """The task of `bench WORDS FLAGS`. RefusedError says what is wrong and what to do."""
    options = BenchOptions(**convert_flags("bench", settings_of(BenchOptions), flags))
    if len(words) != 1:
        extra = f"; unexpected '{words[1]}' (sizes are written --mp 1,2)" if len(words) > 1 else ""
        raise RefusedError(f"bench wants one checkpoint folder or params.json, as bench CKPT_DIR --mp 1,2{extra}")
    sizes = _sizes(options, env)
    tokens = options.prompt_tokens + options.new_tokens
    if tokens > MAX_SEQ_LEN:
        raise RefusedError(
            f"--prompt_tokens {options.prompt_tokens} and --new_tokens {options.new_tokens} are {tokens} tokens; "
            f"wanted {MAX_SEQ_LEN} together at most"
        )
    if env.rank == 0:
        _check_plot(options.plot)
        _check_file("--output", options.output)
    asked = PlanOptions(dtype=options.dtype, vocab_size=options.vocab_size, allow_legacy=options.allow_legacy)
    source = read_source(Path(words[0]), asked)
    _check_layout(source)
    for mp in sizes:
        check_ranks(source.params, mp)
    batches = tuple(size for size in BATCH_SIZES if size <= options.max_batch_size)
    return Task(path=words[0], options=options, source=source, sizes=sizes, batches=batches)


def _sizes(options: BenchOptions, env: Environment) -> tuple[int, ...]:
    """The MP sizes to measure; under torchrun that of its ranks."""
    asked = options.mp
    if asked == []:
        raise RefusedError("--mp holds no size; wanted sizes of 1 or more, as --mp 1,2")
    for index, mp in enumerate(asked or []):
        if mp < 1:
            raise RefusedError(f"--mp holds {mp}; wanted sizes of 1 or more, as --mp 1,2")
        if mp in (asked or [])[:index]:
            raise RefusedError(f"--mp holds {mp} twice; give each size once, as --mp 1,2")
    if not env.launched:
        return tuple(asked or [1])
    if asked not in (None, [env.world_size]):
        given = ",".join(map(str, asked or []))
        raise RefusedError(
            f"--mp is {given} but {env.world_size} ranks were started (WORLD_SIZE); leave --mp out under torchrun, or "
            "let bench start the ranks itself"
        )
    return (env.world_size,)


def _check_layout(source: Source) -> None:
    if source.checkpoint is not None and source.checkpoint.layout == "gguf":
        target = source.path.with_suffix("")
        raise RefusedError(
            f"{source.path}: is a GGUF file, whose numbers are packed; unpack it first: shardrun convert {source.path} "
            f"{target} --to meta"
        )


def _check_plot(plot: str | None) -> None:
    if plot is None:
        return
    if Path(plot).suffix.lower() != ".png":
        raise RefusedError(f"--plot is {plot}; wanted a file whose name ends in .png")
    _check_file("--plot", plot)
    if importlib.util.find_spec("matplotlib") is None:
        raise RefusedError('--plot needs the package matplotlib; install it with: pip install "shardrun[bench]"')


def _check_file(flag: str, name: str | None) -> None:
    """Refuse a file that could not be written in the end."""
    if name is None:
        return
    path = Path(name)
    if path.is_dir():
        raise RefusedError(f"{flag} {name}: is a folder; wanted the name of a file in it")
    if not path.parent.is_dir():
        raise RefusedError(f"{flag} {name}: there is no folder {path.parent}; make it, or name another")
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise RefusedError(f"{flag} {name}: may not be written; name another file")
