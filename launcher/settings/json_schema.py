"""The JSON Schema of job files, with which editors complete and check them, made of the settings.

What it refuses `read_job` refuses too. It lets pass what a schema cannot say: a number written 012, a path with NUL.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from launcher.settings.cluster_options import CLUSTER_SECTIONS
from launcher.settings.options import GENERATION_SECTIONS, ModelSection, ParallelSection
from launcher.settings.schema import Setting, choices_of, settings_of
from launcher.settings.top_keys import NAME, VARIABLE

Schema = dict[str, Any]
_DRAFT = "https://json-schema.org/draft/2020-12/schema"
_NULLABLE_SECTION = {"type": ["object", "null"]}
# What a key of the top is for, here and on the reference page.
TOP_HELP = {
    "name": "name of the job: of its run, its log folder and its job on a cluster (default: the file's)",
    "command": "what is run (default: complete); decides which keys `generation` has",
    "workdir": "current folder of the ranks, relative to this file (default: where the command is typed)",
    "env": "variables of the ranks' environment, texts by name",
    "model": "the checkpoint, and how it is held",
    "parallel": "ranks, hosts, and what is between them; torchrun's own names",
    "generation": "what is asked of the model, and how it answers; which keys there are depends on `command`",
    "cluster": "where `shardrun submit` sends the job; which keys there are depends on `kind`",
}


def job_schema() -> Schema:
    """The schema of a job file, draft 2020-12."""
    kinds: dict[str, type] = {"model": ModelSection, "parallel": ParallelSection}
    kinds |= {f"generation-{command}": kind for command, kind in GENERATION_SECTIONS.items()}
    kinds |= {f"cluster-{kind}": section for kind, section in CLUSTER_SECTIONS.items()}
    return {
        "$schema": _DRAFT,
        "title": "shardrun job",
        "description": "A job file of shardrun: shardrun run JOB.yaml, shardrun submit JOB.yaml",
        "type": "object",
        "additionalProperties": False,
        "required": ["model"],
        "properties": _top_properties(),
        "allOf": [*map(_if_command, GENERATION_SECTIONS), *map(_if_cluster, CLUSTER_SECTIONS)],
        "$defs": {name: _section(name, kind) for name, kind in kinds.items()},
    }


def _top_properties() -> Schema:
    properties: dict[str, Schema] = {
        "name": {"type": ["string", "null"], "pattern": f"^{NAME.pattern}$"},
        "command": {"enum": [*GENERATION_SECTIONS, None], "default": "complete"},
        "workdir": {"type": ["string", "null"], "minLength": 1},
        "env": {
            "type": ["object", "null"],
            "propertyNames": {"pattern": f"^{VARIABLE.pattern}$"},
            "additionalProperties": {"type": "string"},
        },
        "model": _reference("model"),
        "parallel": {"anyOf": [_reference("parallel"), {"type": "null"}]},
        "generation": _NULLABLE_SECTION,
        "cluster": {
            **_NULLABLE_SECTION,
            "properties": {"kind": {"enum": list(CLUSTER_SECTIONS)}},
            "required": ["kind"],
        },
    }
    return {name: {"title": name, "description": TOP_HELP[name], **schema} for name, schema in properties.items()}


def _if_command(command: str) -> Schema:
    """Which keys `generation` has, and whether there must be one, where `command` is this."""
    name = f"generation-{command}"
    condition: Schema = {"properties": {"command": {"const": command}}, "required": ["command"]}
    if command == "complete":  # also where no command stands
        condition = {"properties": {"command": {"enum": [command, None]}}}
    if _required(settings_of(GENERATION_SECTIONS[command])):
        return {"if": condition, "then": {"properties": {"generation": _reference(name)}, "required": ["generation"]}}
    either = {"anyOf": [_reference(name), {"type": "null"}]}
    return {"if": condition, "then": {"properties": {"generation": either}}}


def _if_cluster(kind: str) -> Schema:
    cluster = {"type": "object", "properties": {"kind": {"const": kind}}, "required": ["kind"]}
    return {
        "if": {"properties": {"cluster": cluster}, "required": ["cluster"]},
        "then": {"properties": {"cluster": _reference(f"cluster-{kind}")}},
    }


def _reference(name: str) -> Schema:
    return {"$ref": f"#/$defs/{name}"}


def _section(name: str, kind: type) -> Schema:
    settings, section = settings_of(kind), name.partition("-")[0]
    schema: Schema = {
        "title": name.replace("-", ", "),
        "description": TOP_HELP[section],
        "type": "object",
        "additionalProperties": False,
        "properties": {key: _setting(f"{section}.{key}", each) for key, each in settings.items()},
    }
    required = _required(settings)
    return {**schema, "required": required} if required else schema


def _required(settings: Mapping[str, Setting]) -> list[str]:
    return [key for key, setting in settings.items() if setting.required]


def _setting(title: str, setting: Setting) -> Schema:
    either = _values(setting)
    if setting.limits.file:
        either = [*either, {"type": "string", "pattern": "^@"}]
    if setting.nullable:
        either = [*either, {"type": "null"}]
    said: Schema = {"title": title, "description": setting.limits.help}
    if not setting.required:
        said["default"] = setting.default
    return {**said, **_one(either)}


def _one(either: Sequence[Schema]) -> Schema:
    """One schema of several: `type: [a, b]` where nothing more is to be said, which editors show best."""
    if len(either) == 1:
        return either[0]
    if all(set(schema) == {"type"} for schema in either):
        return {"type": [schema["type"] for schema in either]}
    return {"anyOf": list(either)}


def _values(setting: Setting) -> list[Schema]:
    """What may be written, apart from @FILE and null."""
    words = list(choices_of(setting.kind))
    if words:
        found: list[Schema] = [{"enum": words} if len(words) > 1 else {"const": words[0]}]
        return [{"type": "integer", **_range(setting)}, *found] if setting.is_whole else found
    if setting.is_number:
        return [{"type": "integer" if setting.is_whole else "number", **_range(setting)}]
    plain: dict[Any, Schema] = {
        bool: {"type": "boolean"},
        str: {"type": "string", "minLength": 1},
        list[str]: {"type": "array", "items": {"type": "string"}},
        list[int]: {"type": "array", "items": {"type": "integer", "minimum": 0}},
        list[object]: {"type": "array"},
        dict[str, str]: {"type": "object", "additionalProperties": {"type": "string"}},
    }
    return [plain[setting.kind]]


def _range(setting: Setting) -> Schema:
    limits, found = setting.limits, {}
    if limits.low != -math.inf:
        found["exclusiveMinimum" if limits.above else "minimum"] = limits.low
    if limits.high != math.inf:
        found["maximum"] = limits.high
    return found
