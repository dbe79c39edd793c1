"""The commands: which one, with which flags, and how the process ends. The one door to fire."""

import bdb
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import fire
from fire.decorators import SetParseFn

from launcher.checkpoints.converting import convert_command
from launcher.checkpoints.inspecting import inspect_command
from launcher.checkpoints.planning import plan_command
from launcher.checkpoints.resharding import reshard_command
from launcher.checkpoints.verifying import verify_command
from launcher.console import leave_stdout, log_to_stderr, make_log_dir, print_result
from launcher.generating.answer_file import check_output
from launcher.generating.preflight import preflight
from launcher.guard import die_with_parent
from launcher.ranks.report import READER_GONE, Stopped, report_rank, stop_on_signals
from launcher.ranks.supervisor import run_ranks
from launcher.settings.flags import help_text, job_settings, run_options, run_settings
from launcher.settings.job import read_job
from launcher.settings.options import (
    ConvertOptions,
    InspectOptions,
    PlanOptions,
    ReshardOptions,
    RunOptions,
    VerifyOptions,
)
from launcher.settings.schema import Setting, nearest, settings_of
from launcher.version import version
from parallel.environment import Environment, read_environment
from parallel.errors import RefusedError

Arguments = Sequence[str]


@dataclass(frozen=True, slots=True)
class Command:
    """One command: how it is written, what it does, which settings it has, and what runs it.

    `act` is given the words, the flags as they were typed, what torchrun's variables say, and all that was typed;
    it returns the exit code.
    """

    usage: str
    summary: str
    settings: Callable[[], dict[str, Setting]]
    act: Callable[[Sequence[str], dict[str, str], Environment, Arguments], int]


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
        known = _COMMANDS[command]
        print_result(help_text(command, known.usage, known.summary, known.settings()))
        return 0
    _check_words(arguments)
    codes: list[int] = []
    fire.Fire(_fire_commands(arguments, env, codes), command=_with_values(arguments), name="shardrun")
    return codes[0]


def _overview() -> str:
    lines = [f"  {command.usage}\n      {command.summary}\n" for command in _COMMANDS.values()]
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

    def caller(command: Command) -> Callable[..., None]:
        @SetParseFn(str)  # type: ignore[untyped-decorator]
        def call(*words: str, **flags: str) -> None:
            codes.append(command.act(words, flags, env, arguments))

        return call  # type: ignore[no-any-return]

    return {name: caller(command) for name, command in _COMMANDS.items()}


def _model_command(command: str, usage: str, summary: str) -> Command:
    """A command that runs the model: all its settings are flags."""

    def act(words: Sequence[str], flags: dict[str, str], env: Environment, arguments: Arguments) -> int:
        if words:
            raise RefusedError(f"unexpected '{words[0]}'; {command} takes flags only, as --ckpt_dir DIR")
        return _run(run_options(command, flags), arguments, env)

    return Command(f"shardrun {command} --ckpt_dir DIR {usage}", summary, lambda: run_settings(command), act)


def _run_command(words: Sequence[str], flags: dict[str, str], env: Environment, arguments: Arguments) -> int:
    if not words:
        raise RefusedError("run wants a job file: shardrun run JOB.yaml [section.key=value ...]")
    return _run(read_job(Path(words[0]), words[1:], flags).options, arguments, env)


def _run(options: RunOptions, arguments: Arguments, env: Environment) -> int:
    ranks = options.parallel.nproc_per_node
    if env.launched:
        if ranks not in (None, env.local_world_size):
            raise RefusedError(
                f"--nproc_per_node is {ranks} but {env.local_world_size} ranks were started here (LOCAL_WORLD_SIZE); "
                "leave the flag out under torchrun"
            )
        return _as_rank(options, env)
    if options.generation.output is not None:
        check_output(Path(options.generation.output), options.generation.resume)
    if ranks is None or ranks == 1:
        return _as_rank(options, env)
    preflight(options, ranks)
    return run_ranks(arguments, ranks, options.parallel.log_dir)


def _as_rank(options: RunOptions, env: Environment) -> int:
    """Be one rank, or the only process: run, and end in the way that the report says."""
    log_dir = options.parallel.log_dir
    # Under our own supervisor each rank's stderr is kept by it; elsewhere each rank keeps its own log.
    own_log = log_dir is not None and not env.rendezvous_file
    log_file = make_log_dir(str(log_dir)) / f"rank{env.rank}.log" if own_log else None
    log_to_stderr(env.rank, to_terminal=env.rank == 0 or not env.rendezvous_file, log_file=log_file)
    ready = None if env.launched else preflight(options, 1)
    from launcher.ranks import worker  # loads torch: only now, when the settings are known to be good

    stop_on_signals()
    world = None
    try:
        world = worker.meet(options)
        worker.run(options, world, ready)
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


_COMMANDS: dict[str, Command] = {
    "complete": _model_command("complete", "--prompts '[\"Once upon a time\"]'", "continues prompts"),
    "chat": _model_command("chat", "[--dialogs '[[{...}]]']", "answers dialogs; without any, a chat at the terminal"),
    "infill": _model_command(
        "infill", "--prompts '[\"def f(x):\\n    <FILL_ME>\"]'", "fills in what is missing (Code Llama 7B and 13B)"
    ),
    "score": _model_command("score", "--text TEXT|@FILE", "tells how likely a text is: log-probabilities, perplexity"),
    "run": Command("shardrun run JOB.yaml [section.key=value ...]", "runs a job file", job_settings, _run_command),
    "inspect": Command(
        "shardrun inspect CKPT_DIR [--deep]",
        "tells what a checkpoint is, and whether it is whole",
        lambda: settings_of(InspectOptions),
        inspect_command,
    ),
    "verify": Command(
        "shardrun verify CKPT_DIR --mp 1,2,4",
        "runs each MP size and tells whether the tokens agree, and where they first differ",
        lambda: settings_of(VerifyOptions),
        verify_command,
    ),
    "plan": Command(
        "shardrun plan CKPT_DIR|params.json [--mp N]",
        "tells what each rank will take, and which MP sizes fit",
        lambda: settings_of(PlanOptions),
        plan_command,
    ),
    "reshard": Command(
        "shardrun reshard SRC DST --mp N",
        "writes a Meta checkpoint cut for N ranks",
        lambda: settings_of(ReshardOptions),
        reshard_command,
    ),
    "convert": Command(
        "shardrun convert SRC DST --to meta|hf [--mp N]",
        "writes a checkpoint in Meta's or Hugging Face's layout (SRC: either, or GGUF)",
        lambda: settings_of(ConvertOptions),
        convert_command,
    ),
}
