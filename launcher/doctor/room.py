"""Check: shared memory, the folder for temporary files, and how many files and processes there may be."""

import os
import resource
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from launcher.amounts import human
from launcher.cgroups import Use, groups_of, process_uses
from launcher.doctor.checks import Finding, Findings, Question, bad, good, note, plural, trying
from launcher.doctor.driver import gpu_files

_SHARED = Path("/dev/shm")
# NCCL of several GPUs fills Docker's default of 64 MB.
_SHARED_BYTES = 256 * 10**6
_TEMPORARY_BYTES = 100 * 10**6
_FILES = 256
# Processes and threads of a rank: torch's, gloo's or NCCL's.
_THREADS_OF_RANK = 64


def look(question: Question) -> Findings:
    yield trying("shared memory", f"looking at {_SHARED}", "remount it: mount -o remount /dev/shm")
    yield shared_memory(_free_bytes(_SHARED), bool(gpu_files()))
    yield open_files(*resource.getrlimit(resource.RLIMIT_NOFILE))
    soft = resource.getrlimit(resource.RLIMIT_NPROC)[0]
    yield from processes(process_uses(groups_of("pids")), soft, os.geteuid() == 0, question.usual_ranks)
    yield from core_dumps(resource.getrlimit(resource.RLIMIT_CORE)[0])
    # Last, since whatever comes behind what hangs is not said.
    yield trying("temporary files", "writing a file there", "set TMPDIR to a folder on a local disk")
    yield _temporary()


def _free_bytes(folder: Path) -> int | None:
    try:
        found = os.statvfs(folder)
    except OSError:
        return None
    return found.f_bavail * found.f_frsize


def shared_memory(free: int | None, has_gpu: bool) -> Finding:
    """NCCL's ranks of one host exchange through it; gloo's do not need it."""
    remedy = "give the container more (docker --shm-size=8g; Kubernetes: an emptyDir of medium Memory at /dev/shm)"
    if free is None:
        found, short = f"{_SHARED} is not there", True
    else:
        found, short = f"{human(free)} free in {_SHARED}", free < _SHARED_BYTES
    if not short:
        return good("shared memory", found)
    if has_gpu:
        return bad("shared memory", f"{found}: NCCL ends with a bus error without it", remedy)
    return note("shared memory", f"{found}: too little for NCCL, but there is no GPU here", remedy)


def _temporary() -> Finding:
    """Ranks of one host meet through a file there."""
    wanted = os.environ.get("TMPDIR")
    try:
        folder = tempfile.gettempdir()
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"\0" * 4096)
    except OSError as error:
        return bad(
            "temporary files",
            f"none can be written: {error.strerror or error}",
            "ranks meet through a file there: free some room, or set TMPDIR to a folder that can be written to",
        )
    return temporary(folder, wanted, _free_bytes(Path(folder)) or 0)


def temporary(folder: str, wanted: str | None, free: int) -> Finding:
    """Where temporary files go, and how much room there is."""
    found = f"{human(free)} free in {folder}"
    if wanted and Path(wanted).resolve() != Path(folder).resolve():
        return bad("temporary files", f"TMPDIR={wanted} cannot be written to; {found}", "correct or unset TMPDIR")
    if free < _TEMPORARY_BYTES:
        return bad("temporary files", found, "free some room, or set TMPDIR to a folder that has it")
    return good("temporary files", found)


def open_files(soft: int, hard: int) -> Finding:
    """Each rank opens the shards, its peers' sockets and libraries."""
    if soft == resource.RLIM_INFINITY:
        return good("open files", "no limit")
    found = f"{soft} for a process (ulimit -n)"
    if soft >= _FILES:
        return good("open files", found)
    most = "unlimited" if hard == resource.RLIM_INFINITY else str(hard)
    enough = hard == resource.RLIM_INFINITY or hard >= _FILES
    remedy = f"ulimit -n {4096 if hard == resource.RLIM_INFINITY else min(hard, 4096)}" if enough else "ask for more"
    return bad("open files", f"{found}; {_FILES} or more are wanted, and up to {most} may be set", remedy)


def processes(uses: Sequence[Use], soft: int, is_root: bool, ranks: int) -> Iterator[Finding]:
    """How many more processes and threads there may be; the limit of a user does not bind root."""
    wanted = ranks * _THREADS_OF_RANK
    lefts = [use.left for use in uses]
    if not is_root and soft != resource.RLIM_INFINITY:
        lefts.append(soft)
    left = min(lefts, default=None)
    if left is None:
        yield good("processes", "no limit")
    elif left < wanted:
        found = f"{left} processes and threads may be started; {plural(ranks, 'rank')} want up to {wanted}"
        yield bad("processes", found, "raise ulimit -u, or the container's limit (docker --pids-limit)")
    else:
        yield good("processes", f"{left} processes and threads may be started")


def core_dumps(soft: int) -> Iterator[Finding]:
    """Said where a rank that crashes writes its memory to the disk."""
    if soft:
        size = "" if soft == resource.RLIM_INFINITY else f", up to {human(soft)}"
        yield note("core dumps", f"on{size}: a rank that crashes writes out all its memory first", "ulimit -c 0")
