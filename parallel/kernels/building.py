"""The C++ kernels, compiled for this machine when they are first needed, and kept for the next time.

They are a shared library without Python or torch in it, built in some seconds by whatever C++ compiler the host has
and called through ctypes. Where there is none, or it fails, torch's own kernels do the work, more slowly.
docs/adr/0016-kernels-of-our-own-on-a-cpu.md
"""

import ctypes
import hashlib
import logging
import os
import platform
import shutil
import stat
import subprocess
import tempfile
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


@cache
def library() -> ctypes.CDLL | None:
    """The kernels; None where they cannot be had, which is said once in the log. Builds them where that was not done
    before: some seconds."""
    try:
        return ctypes.CDLL(str(_built()))
    except OSError as error:
        log.warning("note: decoding runs on torch's kernels, about half as fast on a CPU: %s", error)
        return None


def _built() -> Path:
    """The library's file. OSError says why there is none."""
    compiler = next((found for name in _COMPILERS if (found := shutil.which(name))), None)
    if compiler is None:
        raise OSError(f"no C++ compiler was found ({', '.join(_COMPILERS)}); install one, as g++")
    folder = _cache_folder()
    path = folder / f"kernels-{_key(compiler)}.so"
    if not path.exists():
        _compile(compiler, path)
    return path


def _cache_folder() -> Path:
    """A folder that nobody else may write to: code is loaded from it."""
    home = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    for folder in (Path(home) / "shardrun", Path(tempfile.gettempdir()) / f"shardrun-{os.getuid()}"):
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            found = folder.lstat()
        except OSError:
            continue
        ours = stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid() and not found.st_mode & 0o022
        if ours and os.access(folder, os.W_OK | os.X_OK):
            return folder
    raise OSError(f"no folder to keep them in: {home} and {tempfile.gettempdir()} cannot be used")


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
            done = subprocess.run(command, capture_output=True, text=True, timeout=_LIMIT_S, check=False)
            if done.returncode == 0:
                os.chmod(name, 0o700)
                os.replace(name, path)
                return
            errors.append(next((line for line in done.stderr.splitlines() if "error" in line), done.stderr.strip()))
        raise OSError(f"{compiler} could not build them: {errors[0][:300]}")
    except subprocess.TimeoutExpired as error:
        raise OSError(f"{compiler} took more than {_LIMIT_S} s") from error
    finally:
        Path(name).unlink(missing_ok=True)
