"""The C++ kernels, compiled for this machine when they are first needed, and kept for the next time.

They are a shared library without Python or torch in it, built in some seconds by whatever C++ compiler the host has
and called through ctypes. Where there is none, or it fails, torch's own kernels do the work, more slowly.
docs/adr/0016-kernels-of-our-own-on-a-cpu.md
"""

import ctypes
import fcntl
import hashlib
import logging
import os
import platform
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path

log = logging.getLogger("shardrun")

_FOLDER = Path(__file__).parent
_SOURCES = ("pool.cpp", "products.cpp", "steps.cpp", "program.cpp", "exchange.cpp")
_COMPILERS = ("g++", "clang++", "c++")
_FLAGS = ("-std=c++17", "-O3", "-fno-math-errno", "-ffp-contract=fast", "-shared", "-fPIC", "-pthread")
# The processor's own instructions, as compilers spell it; tried in order.
_TUNING = ("-march=native", "-mcpu=native")
_LIMIT_S = 120
_NO_FOLDER = ("no folder to keep them in: neither the user's cache nor the temporary one can be written to",)


@cache
def library() -> ctypes.CDLL | None:
    """The kernels; None where they cannot be had, which is said once in the log. Builds them where that was not done
    before: some seconds."""
    compilers = [found for name in _COMPILERS if (found := shutil.which(name))]
    problems = [] if compilers else [f"no C++ compiler was found ({', '.join(_COMPILERS)}); install one, as g++"]
    for folder in _cache_folders() if compilers else ():
        for compiler in compilers:
            try:
                return ctypes.CDLL(str(_built(compiler, folder)))
            except OSError as error:
                problems.append(str(error))
    log.warning("note: decoding runs on torch's kernels, about half as fast on a CPU: %s", (problems or _NO_FOLDER)[0])
    return None


def fingerprint() -> str:
    """Which kernels these are; empty where there are none. Others may round in another way."""
    kernels = library()
    return "" if kernels is None else Path(kernels._name).name


def _built(compiler: str, folder: Path) -> Path:
    """The library's file. OSError says why there is none."""
    path = folder / f"kernels-{_key(compiler)}.so"
    if _is_there(path):
        return path
    with (folder / "lock").open("w") as lock:
        # Another rank may be building it: then it is there afterwards.
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not _is_there(path):
            _compile(compiler, path)
    return path


def _is_there(path: Path) -> bool:
    return path.exists() and path.stat().st_size > 0


def _cache_folders() -> Iterator[Path]:
    """Folders that nobody else may write to, since code is loaded from them: the user's, then a temporary one."""
    homes = (os.environ.get("XDG_CACHE_HOME", ""), os.path.join(os.path.expanduser("~"), ".cache"))
    # Relative ones mean nothing; "~" stays as it is where nobody knows this user.
    usual = [Path(home) / "shardrun" for home in homes if os.path.isabs(home)][:1]
    for folder in (*usual, Path(tempfile.gettempdir()) / f"shardrun-{os.getuid()}"):
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            found = folder.lstat()
        except OSError:
            continue
        ours = stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid() and not found.st_mode & 0o022
        if ours and os.access(folder, os.W_OK | os.X_OK):
            yield folder


def _key(compiler: str) -> str:
    """What a library is good for: these sources, this compiler, this kind of processor."""
    texts = [path.read_bytes() for path in sorted((*_FOLDER.glob("*.cpp"), *_FOLDER.glob("*.h")))]
    file = Path(compiler).resolve()
    version = f"{file} {file.stat().st_size} {file.stat().st_mtime_ns}"
    how = " ".join((*_SOURCES, *_FLAGS, *_TUNING)).encode()
    about = [version.encode(), how, platform.machine().encode(), _processor()]
    return hashlib.sha256(b"\0".join([*texts, *about])).hexdigest()[:16]


def _processor() -> bytes:
    """What tells kinds of processors apart: hosts of several kinds may share a home folder."""
    try:
        lines = Path("/proc/cpuinfo").read_bytes().splitlines()
    except OSError:
        return platform.processor().encode()
    named = (b"model name", b"flags", b"Features", b"CPU part")
    return b"\n".join(sorted({line for line in lines if line.startswith(named)}))


def _compile(compiler: str, path: Path) -> None:
    log.info("building the kernels for this processor with %s", compiler)
    # Under a name of its own first: other ranks may be building the same.
    handle, name = tempfile.mkstemp(prefix=f"{path.stem}-", suffix=".so.part", dir=path.parent)
    os.close(handle)
    try:
        errors = []
        for tuning in _TUNING:
            command = [compiler, *_FLAGS, tuning, *(str(_FOLDER / source) for source in _SOURCES), "-o", name]
            done = subprocess.run(
                command, capture_output=True, encoding="utf-8", errors="replace", timeout=_LIMIT_S, check=False
            )
            if done.returncode == 0:
                _put_in_place(name, path)
                return
            said = done.stderr.replace(f"{_FOLDER}{os.sep}", "").strip() or f"exit code {done.returncode}"
            errors.append(next((line for line in said.splitlines() if "error" in line), said))
        raise OSError(f"{compiler} could not build them: {errors[0][:300]}")
    except subprocess.TimeoutExpired as error:
        raise OSError(f"{compiler} took more than {_LIMIT_S} s") from error
    finally:
        Path(name).unlink(missing_ok=True)


def _put_in_place(name: str, path: Path) -> None:
    os.chmod(name, 0o700)
    with open(name, "rb") as built:
        # A file that a crash of the host cut off would end every later process.
        os.fsync(built.fileno())
    os.replace(name, path)
