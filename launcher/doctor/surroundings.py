"""Check: variables of the environment that hurt, and folders that hide our packages."""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path

from launcher.doctor.checks import Finding, Findings, Question, Verdict, bad, good, note, trying
from parallel.environment import read_environment
from parallel.errors import RefusedError

_RANKS = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
_PLACE = ("MASTER_ADDR", "MASTER_PORT")
_OURS = ("launcher", "model", "parallel")
_ROOT = Path(__file__).resolve().parents[2]
_LAUNCH = "launch variables"
# Name, value ("" for any but 0 and the empty one), verdict, what it does, what to do.
_HURT: tuple[tuple[str, str, Verdict, str, str], ...] = (
    (
        "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD",
        "",
        "bad",
        "torch.load of other programs runs the code that a checkpoint holds (shardrun never does)",
        "unset it",
    ),
    ("CUDA_LAUNCH_BLOCKING", "", "note", "every kernel is waited for: slow", "unset it when you are done debugging"),
    ("TORCH_DISTRIBUTED_DEBUG", "DETAIL", "note", "every collective is checked: slow", "unset it"),
    ("NCCL_P2P_DISABLE", "", "note", "GPUs exchange through host memory: slow", "unset it where GPUs reach each other"),
    ("NCCL_SHM_DISABLE", "", "note", "ranks of one host exchange over sockets: slow", "unset it"),
    ("NCCL_IB_DISABLE", "", "note", "InfiniBand is not used: slow over several hosts", "unset it where there is one"),
    ("PYTHONDEVMODE", "", "note", "Python checks itself: slow", "unset it"),
    ("LD_PRELOAD", "", "note", "a library is loaded into every rank", "unset it where ranks end by SIGSEGV"),
)


def look(_question: Question) -> Findings:
    yield from launch_findings(os.environ)
    yield from hurting(os.environ)
    yield trying("packages", "looking for other packages named model or parallel", "a folder does not answer: cd / ")
    yield _hidden()


def launch_findings(environ: Mapping[str, str]) -> Iterator[Finding]:
    """What torchrun's variables say here, where nobody started torchrun."""
    ranks = [name for name in _RANKS if name in environ]
    place = [name for name in _PLACE if name in environ]
    shown = ", ".join(f"{name}={environ[name]}" for name in (*ranks, *place))
    remedy = f"unset {' '.join((*ranks, *place))}"
    try:
        env = read_environment(environ)
    except RefusedError as error:
        yield bad(_LAUNCH, f"{shown} in this shell, and every command is refused: {error}", remedy)
        return
    if env.world_size > 1:
        found = f"{shown} in this shell: a command takes itself for rank {env.rank} and waits for the others"
        yield bad(_LAUNCH, found, remedy)
    elif ranks or place:
        yield note(_LAUNCH, f"{shown} in this shell do no harm as they are", remedy)
    else:
        yield good(_LAUNCH, f"none of {', '.join(_RANKS[:3])}, {_PLACE[0]} is set in this shell")


def hurting(environ: Mapping[str, str]) -> Iterator[Finding]:
    """Each variable that slows ranks down, or does worse."""
    for name, wanted, verdict, effect, remedy in _HURT:
        value = environ.get(name, "")
        if value not in ("", "0") and (not wanted or value.upper() == wanted):
            yield Finding(name=name, verdict=verdict, found=f"is {value}: {effect}", remedy=remedy)


def _hidden() -> Finding:
    folders = [Path(entry) for entry in os.environ.get("PYTHONPATH", "").split(os.pathsep) if entry]
    found = hiding([Path.cwd(), *folders], _ROOT)
    if not found:
        return good("packages", f"{', '.join(_OURS)} come from {_ROOT}")
    return note(
        "packages",
        f"{found[0]} holds another {found[0].name}: `python -m launcher` refuses to run where it comes first",
        "run from another folder, or take that one out of PYTHONPATH; the command `shardrun` looks there last",
    )


def hiding(folders: list[Path], root: Path) -> list[Path]:
    """Packages or files of our generic names in `folders` that are not ours."""
    elsewhere = [folder for folder in folders if folder.resolve() != root]
    names = [name for package in _OURS for name in (f"{package}/__init__.py", f"{package}.py")]
    found = [folder / name for folder in elsewhere for name in names if (folder / name).exists()]
    return [path.parent if path.name == "__init__.py" else path for path in found]
