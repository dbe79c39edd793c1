"""The `schema` command: the JSON Schema of job files, for editors, and their reference page."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from launcher.command import Arguments, Command
from launcher.console import print_result
from launcher.settings.flags import convert_flags
from launcher.settings.json_schema import job_schema
from launcher.settings.reference_page import reference_page
from launcher.settings.schema import setting, settings_of
from parallel.environment import Environment
from parallel.errors import RefusedError


@dataclass(frozen=True, slots=True, kw_only=True)
class SchemaOptions:
    reference: bool = setting("print the reference page of job files instead, as Markdown", default=False)


def _schema(words: Sequence[str], flags: Mapping[str, str], env: Environment, _arguments: Arguments) -> int:
    options = SchemaOptions(**convert_flags("schema", settings_of(SchemaOptions), flags))
    if words:
        raise RefusedError(f"unexpected '{words[0]}'; schema takes no file: shardrun schema > job.schema.json")
    if not env.rank:  # under torchrun one rank speaks
        print_result(reference_page() if options.reference else schema_text())
    return 0


def schema_text() -> str:
    """The JSON Schema of job files, as text."""
    return json.dumps(job_schema(), indent=2, ensure_ascii=False) + "\n"


SCHEMA = Command(
    "shardrun schema [--reference]",
    "prints the JSON Schema of job files, with which editors complete and check them",
    lambda: settings_of(SchemaOptions),
    _schema,
)
