"""kubectl, under time limits, and what it says in one sentence."""

import os
import re
import shutil
import signal
import subprocess
from collections.abc import Sequence

from launcher.guard import die_with_parent
from parallel.errors import RefusedError

# Of one request to the server; and of a whole call, which may ask first what kinds the server knows, or for a login.
_REQUEST_S = 15
_LIMIT_S = 30.0
_LOG_LINE = re.compile(r"[EWI][0-9]{4} [0-9:.]+ ")
_PREFIX = re.compile(
    r"^Unable to connect to the server: "
    r'|^(?:error: )?(?:Error from server(?: \((\w+)\))?: )?(?:error when \w+ "[^"]*": )?'
)
# Before it validates, kubectl fetches schemas: where that fails it is not the file that is wrong.
_ADVICE = re.compile(
    r'error validating "[^"]*": error validating data: (failed to download openapi: )?|; if you choose to ignore .*'
)
_UNREACHED = (
    "connection refused",
    "was refused",
    "Unable to connect",
    "no such host",
    "i/o timeout",
    "deadline exceeded",
)


class KubectlError(RefusedError):
    """kubectl failed.

    `reason` is the server's word for it, such as NotFound; "" where there is none. `printed`: what came before.
    """

    def __init__(self, text: str, reason: str = "", printed: str = "") -> None:
        super().__init__(text)
        self.reason, self.printed = reason, printed


def find_kubectl() -> str | None:
    return shutil.which("kubectl")


def arguments(words: Sequence[str], namespace: str) -> list[str]:
    """kubectl's argument list. RefusedError where there is no kubectl."""
    program = find_kubectl()
    if program is None:
        raise RefusedError("no kubectl on this host (PATH); ask where it is, or install it")
    return [program, *words, *([f"--namespace={namespace}"] if namespace else [])]


def kubectl(words: Sequence[str], namespace: str = "") -> str:
    """What `kubectl WORDS` prints. KubectlError says why it could not, also when it takes too long."""
    argv = arguments([*words, f"--request-timeout={_REQUEST_S}s"], namespace)
    process = start(argv, stderr=subprocess.PIPE)
    try:
        out, err = process.communicate(timeout=_LIMIT_S)
    except subprocess.TimeoutExpired as late:
        raise KubectlError(
            f"kubectl {words[0]} took more than {_LIMIT_S:.0f} s; look whether `kubectl cluster-info` answers",
            printed=(late.output or b"").decode(errors="replace"),
        ) from None
    finally:
        stop(process)
    if process.returncode:
        raise failure(err.decode(errors="replace"), out.decode(errors="replace"))
    return str(out.decode(errors="replace"))


def start(argv: Sequence[str], stderr: int | None = None) -> "subprocess.Popen[bytes]":
    return subprocess.Popen(
        argv,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=stderr,
        # A group of its own: programs that kubectl starts for a login end with it.
        process_group=0,
        preexec_fn=die_with_parent,
    )


def stop(process: "subprocess.Popen[bytes]") -> None:
    """End it, and what it started, if it has not ended."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    for stream in (process.stdout, process.stderr):
        if stream is not None:
            stream.close()


def failure(err: str, out: str = "") -> KubectlError:
    """The error that kubectl's stderr tells of. `out` is what it printed before."""
    lines = [line for line in err.splitlines() if line.strip() and not _LOG_LINE.match(line)]
    lines = [line for line in lines if not line.startswith("Warning:")] or lines or ["kubectl said no reason"]
    reasons = [match[1] or "" for line in lines if (match := _PREFIX.match(line))]
    text = "; ".join(dict.fromkeys(_PREFIX.sub("", _ADVICE.sub("", line), count=1) for line in lines[:5]))
    reason = next(filter(None, reasons), "")
    if any(sign in err for sign in _UNREACHED):
        text = f"the cluster cannot be reached: {text}; look whether `kubectl cluster-info` answers"
    elif reason == "Forbidden":
        text = f"{text}; ask who looks after the cluster for that right, or give cluster.namespace"
    elif "provide credentials" in err or reason == "Unauthorized" or "must be logged in" in err:
        text = f"kubectl is not logged in: {text}"
    return KubectlError(text, reason, out)
