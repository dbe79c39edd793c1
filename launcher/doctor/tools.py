"""Check: the programs that submit jobs to a cluster."""

from collections.abc import Mapping

from launcher.doctor.asking import Answer, ask
from launcher.doctor.checks import Finding, Findings, Question, good, note, trying, unknown

_ANSWER_S = 5.0
# How each says its version without asking a cluster.
_TOOLS: Mapping[str, tuple[str, ...]] = {
    "sbatch": ("sbatch", "--version"),
    "squeue": ("squeue", "--version"),
    "kubectl": ("kubectl", "version", "--client"),
}


def look(_question: Question) -> Findings:
    yield trying("cluster tools", "asking for their versions", "only `shardrun submit` needs them", "unknown")
    asked = {name: ask(command, _ANSWER_S) for name, command in _TOOLS.items()}
    for name, program in asked.items():
        yield tool(name, program.answer() if program is not None else None)


def tool(name: str, answer: Answer | None) -> Finding:
    """Whether it is there and answers; most hosts need none."""
    cluster = "Kubernetes" if name == "kubectl" else "Slurm"
    if answer is None:
        return note(name, f"not here: this host submits nothing to {cluster}")
    if answer.hangs:
        return unknown(name, f"does not answer within {_ANSWER_S:g} s", f"run `{' '.join(_TOOLS[name])}` by hand")
    if answer.code != 0:
        return unknown(name, f"fails (exit code {answer.code}): {answer.first_line}", f"mend it to submit to {cluster}")
    return good(name, answer.first_line)
