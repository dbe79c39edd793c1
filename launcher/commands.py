"""The commands: which one, with which flags, and how the process ends. The one door to fire."""

import bdb
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import fire
from fire.decorators import SetParseFn

from launcher.console import ProgressLine, leave_stdout, log_to_stderr, make_log_dir, print_result, say
from launcher.flags import complete_options, help_settings, help_text, reshard_options
from launcher.guard import die_with_parent
from launcher.job import read_job
from launcher.options import CompleteOptions
from launcher.preflight import preflight
from launcher.report import READER_GONE, Stopped, report_rank, stop_on_signals
from launcher.resharding import reshard_folder
from launcher.schema import nearest
from launcher.start import run_ranks
from launcher.version import version
from parallel.environment import Environment, read_environment
from parallel.errors import RefusedError

_COMMANDS: dict[str, tuple[str, str]] = {
    "complete": ("shardrun complete --ckpt_dir DIR --prompts '[\"Once upon a time\"]'", "continues prompts"),
    "reshard": ("shardrun reshard SRC DST --mp N", "writes a Meta checkpoint cut for N ranks"),
    "run": ("shardrun run JOB.yaml [section.key=value ...]", "runs a job file"),
}


def run_command(argv: Sequence[str]) -> int:
    """Run one command; the process's exit code."""
    arguments = list(argv)
    env = Environment()
    try:
        env = read_environment()
        if env.rendezvous_file or env.agent_store:
            die_with_parent()
        return _dispatch(arguments, env)
    except (RefusedError, Stopped) as error:
        return report_rank(error, env, None)
    except KeyboardInterrupt:
        return report_rank(Stopped(2), env, None)
    except BrokenPipeError:
        leave_stdout()
        return READER_GONE


def _dispatch(arguments: list[str], env: Environment) -> int:
    if not arguments:
        sys.stderr.write(_overview())
        return RefusedError.exit_code
    if arguments[0] in ("-h", "--help", "help"):
        print_result(_overview())
        return 0
    if arguments[0] in ("--version", "version"):
        print_result(f"shardrun {version()}\n")
        return 0
    command = arguments[0]
    if command not in _COMMANDS:
        raise RefusedError(f"'{command}' is not a command{nearest(command, _COMMANDS)}")
    if {"-h", "--help"} & set(arguments[1:]):
        usage, summary = _COMMANDS[command]
        print_result(help_text(command, usage, summary, help_settings(command)))
        return 0
    _check_words(arguments)
    codes: list[int] = []
    fire.Fire(_fire_commands(arguments, env, codes), command=_with_values(arguments), name="shardrun")
    return codes[0]


def _overview() -> str:
    lines = [f"  {usage}\n      {summary}\n" for usage, summary in _COMMANDS.values()]
    return (
        "shardrun: a Llama checkpoint on any number of ranks\n\n"
        + "\n".join(lines)
        + "\nshardrun COMMAND --help lists flags.\n"
    )


def _check_words(arguments: Sequence[str]) -> None:
    """Refuse what fire would read as its own: lone dashes, and flags given twice (the last would win)."""
    seen: set[str] = set()
    for word in arguments:
        if word in ("-", "--"):
            raise RefusedError(f"'{word}' has no meaning here; flags are written --name value")
        if word.startswith("--"):
            name = word.split("=", 1)[0].lstrip("-").replace("-", "_")
            if name in seen:
                raise RefusedError(f"--{name} is given twice; give it once")
            seen.add(name)


def _with_values(arguments: Sequence[str]) -> list[str]:
    """The words, with each flag that stands alone given its value: fire would read `--nosuch` as `--such` off."""
    following = [*arguments[1:], "--"]
    alone = [
        word.startswith("--") and "=" not in word and after.startswith("--")
        for word, after in zip(arguments, following, strict=True)
    ]
    return [f"{word}=True" if single else word for word, single in zip(arguments, alone, strict=True)]


def _fire_commands(arguments: list[str], env: Environment, codes: list[int]) -> dict[str, Callable[..., None]]:
    """What fire dispatches to. Every value arrives as the string that was typed."""

    @SetParseFn(str)  # type: ignore[untyped-decorator]
    def complete(*words: str, **flags: str) -> None:
        if words:
            raise RefusedError(f"unexpected '{words[0]}'; complete takes flags only, as --ckpt_dir DIR")
        codes.append(_complete(complete_options(flags), arguments, env))

    @SetParseFn(str)  # type: ignore[untyped-decorator]
    def run(*words: str, **flags: str) -> None:
        if not words:
            raise RefusedError("run wants a job file: shardrun run JOB.yaml [section.key=value ...]")
        job = read_job(Path(words[0]), words[1:], flags)
        codes.append(_complete(job.options, arguments, env))

    @SetParseFn(str)  # type: ignore[untyped-decorator]
    def reshard(*words: str, **flags: str) -> None:
        if len(words) != 2:
            raise RefusedError(f"reshard wants two folders, SRC and DST, and was given {len(words)}")
        codes.append(_reshard(words, flags, env))

    return {"complete": complete, "run": run, "reshard": reshard}


def _complete(options: CompleteOptions, arguments: list[str], env: Environment) -> int:
    ranks = options.parallel.nproc_per_node
    if env.launched:
        if ranks not in (None, env.local_world_size):
            raise RefusedError(
                f"--nproc_per_node is {ranks} but {env.local_world_size} ranks were started here (LOCAL_WORLD_SIZE); "
                "leave the flag out under torchrun"
            )
        return _as_rank(options, env)
    if ranks is None or ranks == 1:
        return _as_rank(options, env)
    preflight(options, ranks)
    return run_ranks(arguments, ranks, options.parallel.log_dir)


def _as_rank(options: CompleteOptions, env: Environment) -> int:
    """Be one rank, or the only process: run, and end in the way that the report says."""
    log_dir = options.parallel.log_dir
    # Under our own supervisor each rank's stderr is kept by it; elsewhere each rank keeps its own log.
    own_log = log_dir is not None and not env.rendezvous_file
    log_file = make_log_dir(str(log_dir)) / f"rank{env.rank}.log" if own_log else None
    log_to_stderr(env.rank, to_terminal=env.rank == 0 or not env.rendezvous_file, log_file=log_file)
    ready = None if env.launched else preflight(options, 1)
    from launcher import worker  # loads torch: only now, when the settings are known to be good

    stop_on_signals()
    world = None
    try:
        world = worker.meet(options)
        worker.complete(options, world, ready)
        world.close()
        return 0
    except BrokenPipeError:
        leave_stdout()
        os._exit(READER_GONE)
    except bdb.BdbQuit:
        raise  # the user left the debugger
    except BaseException as error:
        code = report_rank(error, env, world)
        if world is None or world.store is None:
            return code
        world.farewell()
        # Destroying a group whose ranks have gone may wait for ever.
        os._exit(code)


def _reshard(words: Sequence[str], flags: dict[str, str], env: Environment) -> int:
    options = reshard_options(flags)
    if env.world_size > 1:
        raise RefusedError("reshard runs in one process; start it without torchrun")
    source, destination = Path(words[0]), Path(words[1])
    written = reshard_folder(source, destination, options, ProgressLine("resharding", "GB", 1e9))
    say(f"wrote {written}")
    return 0
