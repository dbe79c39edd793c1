"""What a job's first pod prints, so far or until it ends."""

import subprocess
import time
from collections.abc import Callable

from launcher.cluster.kubernetes.kubectl import KubectlError, arguments, failure, start, stop
from launcher.cluster.kubernetes.pods import Pod, container_of, pods_of
from launcher.console import say
from parallel.errors import RefusedError

_POLL_S = 2.0
_SETTLE_S = 5.0
_WHOLE_LOG_S = 300
_CHUNK_BYTES = 65536
Show = Callable[[bytes], None]


def show_log(name: str, namespace: str, target: str, show: Show) -> None:
    """The output so far. RefusedError says what a job without any waits for."""
    pod = _speaker(pods_of(name, namespace, target))
    if pod is None or not pod.had_output:
        why = f"pod {pod.name} waits for {pod.waits_for}" if pod is not None and pod.waits_for else "no pod has started"
        raise RefusedError(f"{name} has no output yet: {why}; --follow waits for it")
    _say_whose(pod)
    words = ["logs", pod.name, f"--container={container_of(target)}", f"--request-timeout={_WHOLE_LOG_S}s"]
    if problem := _stream(words, namespace, show):
        raise problem


def follow_log(name: str, namespace: str, target: str, ended: Callable[[], str | None], show: Show) -> None:
    """The output until the job has ended. `ended` tells how, once it has."""
    pod = _wait_for_start(name, namespace, target, ended)
    if pod is None:
        return
    _say_whose(pod)
    words = ["logs", "--follow", pod.name, f"--container={container_of(target)}"]
    since: list[str] = []
    while True:
        began = time.monotonic()
        problem = _stream([*words, *since], namespace, show)
        cut_at = time.monotonic()
        if _ends_soon(pod, name, namespace, target):
            return
        if problem is not None and cut_at - began < _SETTLE_S:
            raise problem
        # A server ends connections that were open for hours: go on behind what was seen.
        say(f"the connection to the output of {pod.name} was cut; going on")
        since = [f"--since={int(time.monotonic() - cut_at) + 1}s"]


def _ends_soon(pod: Pod, name: str, namespace: str, target: str) -> bool:
    """True where the pod has ended or gone; its status comes a little later than the end of its output."""
    deadline = time.monotonic() + _SETTLE_S
    while True:
        now = next((known for known in pods_of(name, namespace, target) if known.name == pod.name), None)
        if now is None or now.ended:
            return True
        if time.monotonic() > deadline:
            return False
        time.sleep(_POLL_S / 2)


def _speaker(pods: list[Pod]) -> Pod | None:
    """The pod whose output tells most: the first; where the cluster has removed it, one that failed."""
    first = next((pod for pod in pods if pod.index == 0), None)
    if first is not None and first.had_output:
        return first
    return next((pod for pod in pods if pod.failed and pod.had_output), first)


def _say_whose(pod: Pod) -> None:
    if pod.index:
        say(f"pod 0 has gone; this is the output of pod {pod.name}, which failed")


def _wait_for_start(name: str, namespace: str, target: str, ended: Callable[[], str | None]) -> Pod | None:
    """The pod, once it has output. What it waits for is said, once each; None where the job ended without it."""
    said = ""
    while True:
        pod = _speaker(pods_of(name, namespace, target))
        if pod is not None and pod.had_output:
            return pod
        how = ended()
        if how is not None:
            say(f"{name} has ended without output: {how}")
            return None
        waits = pod.waits_for if pod is not None else ""
        if waits and waits != said:
            said = waits
            say(f"waiting for {waits}")
        time.sleep(_POLL_S)


def _stream(words: list[str], namespace: str, show: Show) -> KubectlError | None:
    """Hand on what kubectl prints until it ends; what went wrong, if anything did."""
    process = start(arguments(words, namespace), stderr=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stderr is not None
    try:
        while piece := process.stdout.read1(_CHUNK_BYTES):  # type: ignore[attr-defined]
            show(piece)
        err = process.stderr.read().decode(errors="replace")
        return failure(err) if process.wait() else None
    finally:
        stop(process)
