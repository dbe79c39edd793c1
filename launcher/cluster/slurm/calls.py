"""Slurm's commands: run under a time limit, and what is said where one is not there or gets no answer."""

import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from parallel.errors import RefusedError

# Slurm's own commands give up after one to three times MessageTimeout, which is 10 s.
_LIMIT_S = 20.0
_UNREACHED = (
    "Unable to contact slurm controller",
    "Connection refused",
    "Connection timed out",
    "Socket timed out",
    "Zero Bytes were transmitted",
    "Insane message length",
    "Unable to process configuration file",
    "Unable to establish controller machine",
    "Could not establish a configuration source",
)
# What one job hands to its own processes begins so; a job that is submitted from within would take it for its own.
_OF_A_JOB = ("SLURM_", "SLURMD_")
_KEPT = frozenset({"SLURM_CONF", "SLURM_CONF_SERVER", "SLURM_CLUSTERS", "SLURM_JWT"})
# Options whose variable has another name.
_VARIABLES = {"TIME": "TIMELIMIT", "MEM": "MEM_PER_NODE", "REQUEUE": "NO_REQUEUE", "NO_REQUEUE": "REQUEUE"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """How one of Slurm's commands ended."""

    code: int
    out: str
    err: str

    @property
    def reason(self) -> str:
        """What it complained of, in a line without the name of the program."""
        lines = [line.strip() for line in self.err.splitlines() if line.strip()]
        return "; ".join(dict.fromkeys(_without_program(line) for line in lines)) or f"exit code {self.code}, no reason"


def call(words: Sequence[str], env: Mapping[str, str] | None = None, limit_s: float = _LIMIT_S) -> Answer:
    """Run one of Slurm's commands. RefusedError where there is none, or no answer from Slurm's controller."""
    try:
        done = subprocess.run(
            words,
            env=env,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=limit_s,
            check=False,
        )
    except FileNotFoundError:
        raise RefusedError(
            f"no {words[0]} on this host: type this on a login node of the cluster; a job runs without Slurm by "
            "`shardrun run`"
        ) from None
    except OSError as error:
        raise RefusedError(f"{words[0]} cannot be run: {error.strerror}") from None
    except subprocess.TimeoutExpired:
        raise _unreached(words[0], f"no answer within {limit_s:g} s") from None
    answer = Answer(code=done.returncode, out=done.stdout, err=done.stderr)
    if answer.code and any(sign in answer.err for sign in _UNREACHED):
        raise _unreached(words[0], answer.reason)
    return answer


class ControllerError(RefusedError):
    """Slurm's controller gave no answer."""


def _unreached(program: str, reason: str) -> ControllerError:
    return ControllerError(
        f"Slurm's controller cannot be reached ({program}: {reason}); try again, and look whether `scontrol ping` does"
    )


def submitting_environment(environ: Mapping[str, str], options: Sequence[str]) -> dict[str, str]:
    """The environment for sbatch, which it hands to the job.

    Without what another job left in it, and without SBATCH_ variables of options that the script writes: they would
    win over the script.
    """
    written = {option.partition("=")[0].lstrip("-").upper().replace("-", "_") for option in options}
    dropped = {f"SBATCH_{name}" for name in written | {_VARIABLES.get(name, name) for name in written}}
    return {
        name: value
        for name, value in environ.items()
        if name in _KEPT or not (name in dropped or name.startswith(_OF_A_JOB))
    }


def _without_program(line: str) -> str:
    for program in ("sbatch: ", "scontrol: ", "scancel: ", "error: ", "fatal: "):
        line = line.removeprefix(program)
    return line
