"""The commands: which one, with which flags, and how the process ends. The one door to fire."""

import importlib
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import fire
from fire.decorators import SetParseFn

from launcher.checkpoints.converting import convert_command
from launcher.checkpoints.inspecting import inspect_command
from launcher.checkpoints.planning import plan_command
from launcher.checkpoints.resharding import reshard_command
from launcher.checkpoints.verifying import verify_command
from launcher.command import Arguments, Command
from launcher.console import leave_stdout, print_result
from launcher.guard import die_with_parent
from launcher.ranks.dry_run import dry_run
from launcher.ranks.report import READER_GONE, Stopped, report_rank
from launcher.ranks.running import run
from launcher.settings.flags import dry_run_asked, help_text, job_settings, run_options, run_settings
from launcher.settings.job import read_job
from launcher.settings.options import (
    ConvertOptions,
    InspectOptions,
    PlanOptions,
    ReshardOptions,
    VerifyOptions,
)
from launcher.settings.schema import BOOLEANS, nearest, settings_of
from launcher.version import version
from parallel.environment import Environment, read_environment
from parallel.errors import RefusedError


def run_command(argv: Sequence[str]) -> int:
    """Run one command; the process's exit code."""
    arguments = list(argv)
    env = Environment()
    try:
        # What is refused of a stray RANK is for doctor to find and explain.
        env = Environment() if arguments[:1] == ["doctor"] else read_environment()
        if env.agent_store:
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
        meant = f"; did you mean 'shardrun run {command}'?" if Path(command).suffix in (".yaml", ".yml") else ""
        raise RefusedError(f"'{command}' is not a command{meant or nearest(command, _COMMANDS)}")
    if {"-h", "--help"} & set(arguments[1:]):
        known = _command(command)
        print_result(help_text(command, known.usage, known.summary, known.settings()))
        return 0
    _check_words(arguments)
    codes: list[int] = []
    fire.Fire(
        {command: _fire_command(_command(command), arguments, env, codes)},
        command=_with_values(arguments, _command(command)),
        name="shardrun",
    )
    return codes[0]


def _overview() -> str:
    lines = [f"  {command.usage}\n      {command.summary}\n" for command in map(_command, _COMMANDS)]
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


def _with_values(arguments: Sequence[str], command: Command) -> list[str]:
    """The words, with each flag that stands alone given its value: fire would read `--nosuch` as `--such` off, and in
    `--dry_run model.exact=true` the second word as the first one's value."""
    switches = {name for name, setting in command.settings().items() if setting.is_flag}
    following = [*arguments[1:], "--"]
    alone = [
        word.startswith("--")
        and "=" not in word
        and (after.startswith("--") or (_flag_name(word) in switches and after.lower() not in BOOLEANS))
        for word, after in zip(arguments, following, strict=True)
    ]
    return [f"{word}=True" if single else word for word, single in zip(arguments, alone, strict=True)]


def _flag_name(word: str) -> str:
    return word.lstrip("-").replace("-", "_")


def _command(name: str) -> Command:
    known = _COMMANDS[name]
    if isinstance(known, Command):
        return known
    module, _, attribute = known.partition(":")
    found: Command | dict[str, Command] = getattr(importlib.import_module(module), attribute)
    return found[name] if isinstance(found, dict) else found


def _fire_command(command: Command, arguments: list[str], env: Environment, codes: list[int]) -> Callable[..., None]:
    """What fire calls. Every value arrives as the string that was typed."""

    @SetParseFn(str)  # type: ignore[untyped-decorator]
    def call(*words: str, **flags: str) -> None:
        codes.append(command.act(words, flags, env, arguments))

    return call  # type: ignore[no-any-return]


def _model_command(command: str, usage: str, summary: str) -> Command:
    """A command that runs the model: all its settings are flags."""

    def act(words: Sequence[str], flags: dict[str, str], env: Environment, arguments: Arguments) -> int:
        if words:
            raise RefusedError(f"unexpected '{words[0]}'; {command} takes flags only, as --ckpt_dir DIR")
        return run(run_options(command, flags), arguments, env)

    return Command(f"shardrun {command} --ckpt_dir DIR {usage}", summary, lambda: run_settings(command), act)


def _run_command(words: Sequence[str], flags: dict[str, str], env: Environment, arguments: Arguments) -> int:
    if not words:
        raise RefusedError("run wants a job file: shardrun run JOB.yaml [section.key=value ...]")
    dry = dry_run_asked(flags)
    job = read_job(Path(words[0]), words[1:], flags)
    if dry:
        return dry_run(job, arguments, env)
    os.environ.update(job.env)
    return run(job.options, arguments, env, job.name, job.workdir)


# A command, or where it is: a module that only this command needs is loaded for it alone.
_COMMANDS: dict[str, Command | str] = {
    "complete": _model_command("complete", "--prompts '[\"Once upon a time\"]'", "continues prompts"),
    "chat": _model_command("chat", "[--dialogs '[[{...}]]']", "answers dialogs; without any, a chat at the terminal"),
    "infill": _model_command(
        "infill", "--prompts '[\"def f(x):\\n    <FILL_ME>\"]'", "fills in what is missing (Code Llama 7B and 13B)"
    ),
    "score": _model_command("score", "--text TEXT|@FILE", "tells how likely a text is: log-probabilities, perplexity"),
    "run": Command(
        "shardrun run JOB.yaml [section.key=value ...] [--dry_run]", "runs a job file", job_settings, _run_command
    ),
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
    "bench": "launcher.benchmarking.command:BENCH",
    "doctor": "launcher.doctor.command:DOCTOR",
    "submit": "launcher.cluster.commands:COMMANDS",
    "status": "launcher.cluster.commands:COMMANDS",
    "logs": "launcher.cluster.commands:COMMANDS",
    "cancel": "launcher.cluster.commands:COMMANDS",
    "schema": "launcher.settings.schema_command:SCHEMA",
}
