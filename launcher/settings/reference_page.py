"""The reference page of job files, docs/job-files.md, made of the settings. `shardrun schema --reference` prints it."""

from collections.abc import Iterator, Mapping

from launcher.settings.cluster_options import CLUSTER_SECTIONS
from launcher.settings.json_schema import TOP_HELP
from launcher.settings.options import GENERATION_SECTIONS, GenerationSection, ModelSection, ParallelSection
from launcher.settings.schema import Setting, settings_of
from launcher.settings.yaml_file import MOST_BYTES, MOST_BYTES_SLOW
from launcher.settings.yaml_tree import MAX_VALUES
from parallel.errors import one_of

_HEAD = f"""\
# Job files

<!-- Made by `shardrun schema --reference`; change the settings in launcher/settings/, not this page. -->

A job file says in YAML what flags say on the command line, with the same names, in sections. The same file runs in
one process, on the ranks of one machine, on several hosts, and on a cluster:

    shardrun run JOB.yaml                          # here
    shardrun run JOB.yaml --dry_run                # what would be run; nothing is started
    shardrun run JOB.yaml generation.temperature=0 # with an override
    shardrun submit JOB.yaml                       # where its section `cluster` says

```yaml
name: story
command: complete
env:
  NCCL_DEBUG: WARN
model:
  ckpt_dir: llama-2-7b
  max_seq_len: 2048
parallel:
  nproc_per_node: 2
generation:
  prompts: '@prompts.txt'
  temperature: 0.6
  output: answers.jsonl
cluster:
  kind: slurm
  partition: gpu
  time: 02:00:00
```

Files to copy are in `configs/`. Paths are relative to the folder of the file (`~/` is the home folder), those in
overrides to the current folder. Texts are taken as they stand: `$NAME` is not replaced.

The file is YAML 1.2, in UTF-8, of at most {MOST_BYTES} bytes ({MOST_BYTES_SLOW} where PyYAML was built without libyaml)
and {MAX_VALUES} values; prompts and dialogs can stand in a file of their own (`prompts: '@FILE.txt'`, in quotes).
Tags, anchors, aliases and merge keys are refused, and so is a key that is given twice. `no` and `on` are texts (write
`false`, `true`), `12:30:00` is a text, `1e5` is a number with a point (write `100000`), `012` is refused because
readers differ about it.
"""
_TAIL = """\
## Overrides

Behind the file: `section.key=value`, `--section.key=value` or `--section.key value`. A value is read as in the file,
and checked like one; a text needs no quotes. Where the default is none, `null` brings it back. `name=`, `command=`,
`workdir=`, `env.NAME=` and `cluster.key=` work too.

    shardrun run JOB.yaml parallel.nproc_per_node=8 'generation.stop=["\\n"]' env.NCCL_DEBUG=INFO
    shardrun submit JOB.yaml --cluster.partition debug --cluster.time 30

## Errors

Everything is checked before anything is started. Every error of a file is told at once, a line each: file, line,
column, key, what was found, what is wanted, and what may have been meant. The exit code is 2.

    shardrun: error:
    job.yaml:5:3: 'max_seq_length' is not a key of model; did you mean 'max_seq_len'?
    job.yaml:7:3: 'seed' is not a key of parallel; it is a key of generation
    job.yaml:8:3: 'master_addr' is not a key of parallel; write parallel.rdzv_endpoint: HOST:PORT
    job.yaml:11:11: generation.stream is "yes"; wanted true or false; yes is a text in YAML 1.2: write true

## Editors

`shardrun schema > job.schema.json` writes a JSON Schema (draft 2020-12), which is also [here](job.schema.json). Editors
with a YAML language server complete and check a job file that begins with

    # yaml-language-server: $schema=job.schema.json
"""


def reference_page() -> str:
    """The page, as Markdown."""
    commands, kinds = one_of(list(GENERATION_SECTIONS)), one_of(list(CLUSTER_SECTIONS))
    shared = settings_of(GenerationSection)
    parts = [_HEAD, _top_table()]
    parts.append(_table("## model", TOP_HELP["model"], settings_of(ModelSection)))
    parts.append(_table("## parallel", TOP_HELP["parallel"], settings_of(ParallelSection)))
    parts.append(_table("## generation", f"{TOP_HELP['generation']}. For {commands}:", shared))
    for command, kind in GENERATION_SECTIONS.items():
        own = {key: setting for key, setting in settings_of(kind).items() if key not in shared}
        parts.append(_table(f"### command: {command}", "besides:", own))
    parts.append(f"## cluster\n\n{_sentence(TOP_HELP['cluster'])} `kind` is {kinds}.\n")
    for name, kind in CLUSTER_SECTIONS.items():
        parts.append(_table(f"### kind: {name}", (kind.__doc__ or "").strip(), settings_of(kind)))
    return "\n".join([*parts, _TAIL])


def _top_table() -> str:
    lines = ["## The top of the file", "", "| key | what it is |", "|---|---|"]
    lines += [f"| `{key}` | {_cell(text)} |" for key, text in TOP_HELP.items()]
    return "\n".join(lines) + "\n"


def _table(title: str, text: str, settings: Mapping[str, Setting]) -> str:
    head = [title, "", _sentence(text), "", "| key | wanted | default | what it does |", "|---|---|---|---|"]
    return "\n".join([*head, *_rows(settings)]) + "\n"


def _rows(settings: Mapping[str, Setting]) -> Iterator[str]:
    for key, setting in settings.items():
        yield f"| `{key}` | {_cell(_wanted(setting))} | {_default(setting)} | {_cell(setting.limits.help)} |"


def _wanted(setting: Setting) -> str:
    # What a flag takes besides is nothing to a file.
    return (
        setting.wanted.replace("(JSON, as ", "(as ").replace("(as 1,2 or JSON)", "(as [1, 2])").replace(" (JSON)", "")
    )


def _default(setting: Setting) -> str:
    if setting.required:
        return "required"
    shown = {None: "none", True: "`true`", False: "`false`"}
    value = setting.default
    return shown[value] if value is None or isinstance(value, bool) else f"`{value}`"


def _cell(text: str) -> str:
    """A text in a table, where a bar would end a cell and a letter's case may begin a tag."""
    return text.replace("|", "\\|").replace("<", "&lt;")


def _sentence(text: str) -> str:
    return text[0].upper() + text[1:] + ("" if text.endswith((".", ":")) else ".")
