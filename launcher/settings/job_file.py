"""Reads the file of a job: a plain file of UTF-8 text of some size, or a reason why not. Nothing is waited for."""

import os
import stat
from pathlib import Path

from launcher.settings.places import Located, Place, Problems
from launcher.settings.yaml_file import MAX_BYTES, parse_yaml
from parallel.errors import RefusedError


def read_job_file(path: Path, problems: Problems) -> dict[str, Located]:
    """What stands at the top of a job file, by key. What is wrong with single values goes to `problems`."""
    root = parse_yaml(_text(path), str(path), problems)
    if root is None:
        raise RefusedError(f"{path}: is empty; wanted a job (sections model, parallel, generation)")
    if root.wrong:
        problems.refuse()
    if not isinstance(root.value, dict):
        shown = repr(root.plain())
        raise RefusedError(
            f"{root.place}: holds {shown if len(shown) <= 80 else f'{shown[:77]}...'}; wanted keys and sections, as "
            "name: demo, and model: with ckpt_dir: below it"
        )
    values: dict[str, Located] = root.value
    return values


def _text(path: Path) -> str:
    data = _bytes(path)
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise RefusedError(f"{path}: is UTF-16 text; save it as UTF-8")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        # Of some codecs `start` counts behind the byte order mark.
        before = error.object[: error.start]
        line = before.rpartition(b"\n")[2].decode("utf-8", "replace")
        place = Place(str(path), before.count(b"\n") + 1, len(line) + 1)
        raise RefusedError(f"{place}: is not UTF-8 text (byte {error.start}); save it as UTF-8") from None


def _bytes(path: Path) -> bytes:
    if str(path) in ("-", "/dev/stdin"):
        raise RefusedError(f"{path}: a job is not read from stdin, because each rank reads it; write it to a file")
    try:
        # A pipe that nobody writes to is not waited for.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    except FileNotFoundError:
        what = f"is a link to {os.readlink(path)}, which does not exist" if path.is_symlink() else "does not exist"
        raise RefusedError(f"{path}: {what}; wanted a YAML job file") from None
    except OSError as error:
        raise RefusedError(f"{path}: cannot be read: {error.strerror}; wanted a YAML job file") from None
    try:
        return _content(path, descriptor)
    except OSError as error:
        raise RefusedError(f"{path}: cannot be read: {error.strerror}; wanted a YAML job file") from None
    finally:
        os.close(descriptor)


def _content(path: Path, descriptor: int) -> bytes:
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        kind = "a folder" if stat.S_ISDIR(status.st_mode) else "a pipe, socket or device"
        raise RefusedError(f"{path}: is not a file but {kind}; wanted a YAML job file")
    if status.st_size > MAX_BYTES:
        raise RefusedError(
            f"{path}: has {status.st_size} bytes; a job file has at most {MAX_BYTES}; put prompts or dialogs in a "
            "file of their own, and name it: prompts: '@FILE.txt'"
        )
    with open(descriptor, "rb", closefd=False) as file:
        return file.read(MAX_BYTES)
