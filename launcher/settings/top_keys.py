"""What stands at the top of a job file beside its sections: name, command, workdir, env; and a cluster's kind."""

import os
import re
from collections.abc import Mapping
from pathlib import Path

from launcher.settings.cluster_options import CLUSTER_SECTIONS
from launcher.settings.explaining import in_quotes
from launcher.settings.options import GENERATION_SECTIONS
from launcher.settings.places import Located, Place, Problems
from launcher.settings.section import shortened, shown
from launcher.settings.vocabulary import nearest_word
from parallel.errors import one_of

# Names become names of folders, of jobs on a cluster, and words of commands.
NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,63}")
VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
# What the launcher tells its ranks by.
_TAKEN = re.compile(r"(LOCAL_)?(RANK|WORLD_SIZE)|MASTER_(ADDR|PORT)|(TORCHELASTIC|SHARDRUN)_.*")


def read_name(located: Located | None, path: Path, problems: Problems) -> str:
    """The job's name; by default that of its file, as far as its letters can stand in a name."""
    if located is None or located.value is None:
        return re.sub(r"[^A-Za-z0-9._-]", "-", path.stem).lstrip(".-")[:64] or "job"
    if not (isinstance(located.value, str) and NAME.fullmatch(located.value)):
        _tell(
            problems,
            located,
            f"name is {shown(located)}; wanted 1 to 64 letters, digits, '.', '_' and '-', the first no '.' or '-'"
            f"{in_quotes(located)}",
        )
    return str(located.value)


def read_command(located: Located | None, problems: Problems) -> str | None:
    """The command that the job runs; None where it is none, which is then among the problems."""
    if located is None or located.value is None:
        return "complete"
    if isinstance(located.value, str) and located.value in GENERATION_SECTIONS:
        return located.value
    near = nearest_word(located.value, GENERATION_SECTIONS)
    _tell(problems, located, f"command is {shown(located)}; wanted {one_of(list(GENERATION_SECTIONS))}{near}")
    return None


def read_workdir(located: Located | None, folder: Path, problems: Problems) -> str | None:
    if located is None or located.value is None:
        return None
    value = located.value
    if not isinstance(value, str) or not value or re.search(r"[\x00-\x1f\x7f]", value):
        _tell(problems, located, f"workdir is {shown(located)}; wanted a folder{in_quotes(located)}")
        return None
    start = folder if located.place.line else Path(os.path.abspath("."))
    return str(start / os.path.expanduser(value))


def read_env(located: Located | None, problems: Problems) -> dict[str, str]:
    """The variables of `env`; those that are wrong are among the problems."""
    if located is None or located.value is None:
        return {}
    if not isinstance(located.value, dict):
        _tell(problems, located, f"env is {shown(located)}; wanted variables by name, as {{NCCL_DEBUG: 'INFO'}}")
        return {}
    for name, item in located.value.items():
        if problems.enough:
            break
        if not VARIABLE.fullmatch(name):
            wanted = "wanted letters, digits and '_', the first no digit"
            problems.add(item.key_at, f"'{shortened(name)}' is no name of a variable; {wanted}")
        elif _TAKEN.fullmatch(name):
            problems.add(item.key_at, f"env.{shortened(name)} is set by the launcher, for each rank; leave it out")
        elif not isinstance(item.value, str):
            _tell(problems, item, f"env.{shortened(name)} is {shown(item)}; wanted a text{in_quotes(item)}")
        elif "\0" in item.value or "\n" in item.value:
            _tell(problems, item, f"env.{shortened(name)} is {shown(item)}; wanted one line, without NUL")
    return {name: item.value for name, item in located.value.items()}


def cluster_kinds(located: Located | None) -> list[type]:
    """The kind of section that `cluster` is; all of them where that cannot be told, none where there is no cluster."""
    if located is None or located.value is None:
        return []
    kind = located.value["kind"].value if isinstance(located.value, dict) and "kind" in located.value else None
    found = CLUSTER_SECTIONS.get(kind) if isinstance(kind, str) else None
    return list(CLUSTER_SECTIONS.values()) if found is None else [found]


def check_cluster_kind(located: Located, problems: Problems) -> None:
    """Tell a kind of cluster that is missing or none."""
    if not isinstance(located.value, dict):
        return  # told as a section is
    wanted = f"wanted {one_of(list(CLUSTER_SECTIONS))}"
    kind = located.value.get("kind")
    if kind is None:
        _tell(problems, located, f"cluster.kind is missing; {wanted}", located.key_at)
    elif not (isinstance(kind.value, str) and kind.value in CLUSTER_SECTIONS):
        _tell(problems, kind, f"cluster.kind is {shown(kind)}; {wanted}{nearest_word(kind.value, CLUSTER_SECTIONS)}")


def _tell(problems: Problems, located: Located, text: str, place: Place | None = None) -> None:
    """Tell a problem, but none of a value that was refused already."""
    if not located.is_wrong():
        problems.add(place or located.place, text)


def without_kind(located: Located | None) -> Located | None:
    """The cluster without its kind, where that was told to be wrong."""
    if located is None or not isinstance(located.value, Mapping):
        return located
    fields = {key: item for key, item in located.value.items() if key != "kind"}
    return Located(fields, located.place, located.key_place)
