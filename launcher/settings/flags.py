"""Flags of the command line to typed options, refused before anything starts.

fire runs a program first and complains about an unknown flag afterwards, and takes `1e5` for a folder's
name as a number. So it hands over plain strings, and they are checked here.
"""

from collections.abc import Mapping
from typing import Any

from launcher.settings.cluster_options import CLUSTER_SECTIONS
from launcher.settings.options import (
    GENERATION_SECTIONS,
    ConvertOptions,
    InspectOptions,
    JobFileOptions,
    ReshardOptions,
    RunOptions,
    sections_of,
)
from launcher.settings.schema import Setting, Wanted, nearest, settings_of
from parallel.errors import RefusedError

# What fire gives a flag that stands without a value.
_NO_VALUE = "True"


def run_options(command: str, flags: Mapping[str, str]) -> RunOptions:
    """The sections of a command that runs the model, from its flags."""
    values = convert_flags(command, run_settings(command), flags)
    built: dict[str, Any] = {
        name: section(**{key: values[key] for key in settings_of(section) if key in values})
        for name, section in sections_of(command).items()
    }
    return RunOptions(command=command, **built)


def reshard_options(flags: Mapping[str, str]) -> ReshardOptions:
    return ReshardOptions(**convert_flags("reshard", settings_of(ReshardOptions), flags))


def convert_options(flags: Mapping[str, str]) -> ConvertOptions:
    return ConvertOptions(**convert_flags("convert", settings_of(ConvertOptions), flags))


def inspect_options(flags: Mapping[str, str]) -> InspectOptions:
    return InspectOptions(**convert_flags("inspect", settings_of(InspectOptions), flags))


def convert_flags(command: str, known: Mapping[str, Setting], flags: Mapping[str, str]) -> dict[str, Any]:
    """Typed values by name. RefusedError names the flag, its value and what was wanted."""
    values: dict[str, Any] = {}
    for flag, raw in flags.items():
        name, text = _negated(flag, raw, known)
        setting = known.get(name)
        if setting is None:
            raise RefusedError(f"--{flag} is not a flag of {command}{nearest(name, known)}")
        if text == _NO_VALUE and not setting.is_flag:
            raise RefusedError(f"--{flag} has no value; wanted {setting.wanted}")
        try:
            values[name] = setting.convert(text, typed=False)
        except Wanted as wanted:
            raise RefusedError(f"--{flag} is {_shown(text)}; wanted {wanted}") from None
    missing = [name for name, setting in known.items() if setting.required and name not in values]
    if missing:
        raise RefusedError(f"--{missing[0]} is missing; wanted: {known[missing[0]].limits.help}")
    return values


def _negated(flag: str, raw: str, known: Mapping[str, Setting]) -> tuple[str, str]:
    """`--no_stream` and `--nostream` are `--stream false`."""
    for prefix in ("no_", "no"):
        name = flag.removeprefix(prefix)
        if flag not in known and name in known and known[name].is_flag and raw == _NO_VALUE:
            return name, "false"
    return flag, raw


def _shown(text: str) -> str:
    return repr(text if len(text) <= 80 else f"{text[:77]}...")


def help_text(command: str, usage: str, summary: str, settings: Mapping[str, Setting]) -> str:
    """The help of one command: a line a flag."""
    lines = [f"shardrun {command}: {summary}", "", f"  {usage}", ""]
    for name, setting in settings.items():
        default = "required" if setting.required else f"default {_default(setting.default)}"
        lines.append(f"  --{name:<20} {setting.limits.help} [{default}; {setting.wanted}]")
    return "\n".join(lines) + "\n"


def _default(value: object) -> str:
    shown = {None: "none", True: "on", False: "off"}
    return shown[value] if value is None or isinstance(value, bool) else str(value)


def run_settings(command: str) -> dict[str, Setting]:
    """Every setting of a command that runs the model, under its flag: first what must be given."""
    found = {
        name: setting for section in sections_of(command).values() for name, setting in settings_of(section).items()
    }
    return dict(sorted(found.items(), key=lambda item: not item[1].required))


def job_settings() -> dict[str, Setting]:
    """What `run` takes: its own flags, and every setting of a job file as section.name, of any command and cluster."""
    sections = [pair for command in GENERATION_SECTIONS for pair in sections_of(command).items()]
    sections += [("cluster", kind) for kind in CLUSTER_SECTIONS.values()]
    found = settings_of(JobFileOptions)
    for section, kind in sections:
        for name, setting in settings_of(kind).items():
            found.setdefault(f"{section}.{name}", setting)
    return found


def dry_run_asked(flags: dict[str, str]) -> bool:
    """Whether --dry_run is among the flags of `run`, out of which it is taken: the others are settings of the job."""
    known = settings_of(JobFileOptions)
    own = {name: flags.pop(name) for name in list(flags) if name in known}
    return JobFileOptions(**convert_flags("run", known, own)).dry_run
