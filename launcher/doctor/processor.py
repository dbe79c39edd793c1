"""Check: the processor's cores against the ranks, threads, and the numbers that it computes fast."""

import os
from collections.abc import Iterator

from launcher.cgroups import core_quota, groups_of
from launcher.doctor.checks import Finding, Findings, Question, good, note, plural
from model.host import cpu_has_bfloat16


def look(question: Question) -> Findings:
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    yield cores(allowed, os.cpu_count() or allowed, core_quota(groups_of("cpu")), question.usual_ranks)
    yield from threads(os.environ.get("OMP_NUM_THREADS"), allowed, question.usual_ranks)
    if cpu_has_bfloat16():
        yield good("bfloat16", "this processor computes bfloat16 itself")
    else:
        yield note("bfloat16", "this processor has no bfloat16 arithmetic: on it --dtype auto computes in float32")


def cores(allowed: int, there: int, quota: float | None, ranks: int) -> Finding:
    """Cores that may be used, by affinity and by a container's quota."""
    usable = min(float(allowed), quota) if quota is not None else float(allowed)
    found = f"{usable:g} of {plural(there, 'core')} to use"
    reasons = [
        *([f"affinity leaves {allowed}"] if allowed < there else []),
        *([f"a container's quota is {quota:g}"] if quota is not None and quota < allowed else []),
    ]
    found += f" ({', '.join(reasons)})" if reasons else ""
    if usable >= ranks:
        return good("cores", f"{found}, for {plural(ranks, 'rank')}")
    return note("cores", f"{found}, fewer than {ranks} ranks: on the CPU they wait for each other", "start fewer ranks")


def threads(value: str | None, allowed: int, ranks: int) -> Iterator[Finding]:
    """What OMP_NUM_THREADS does to ranks on the CPU; nothing is said where it is not set."""
    if value is None:
        return
    if not value.isdecimal() or int(value) < 1:
        yield note("OMP_NUM_THREADS", f"is {value!r}, which is no number of threads", "unset it")
    elif int(value) > 1 and int(value) * ranks > allowed:
        found = f"is {value}: {plural(ranks, 'rank')} of so many threads want more than {plural(allowed, 'core')}"
        yield note("OMP_NUM_THREADS", found, f"unset it, or set it to {max(1, allowed // ranks)}")
    else:
        yield good("OMP_NUM_THREADS", f"is {value}")
