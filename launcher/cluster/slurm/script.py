"""The two scripts of a Slurm job, as text: `job.sbatch`, which Slurm runs once, and `node.sh`, once on each node."""

import shlex
import sys
from pathlib import Path

from launcher.settings.cluster_options import SlurmSection
from launcher.settings.job import Job

JOB_FILE, JOB_SCRIPT, NODE_SCRIPT = "job.yaml", "job.sbatch", "node.sh"
RESULT = "result.json"
# The ports that a job's number is folded into, where the job says none.
_FIRST_PORT, _PORTS = 20000, 20000
# When the launcher of one node has ended, those of the others have so long to say why they end too: they hear of it at
# once, but for one that was refused before it had met the others.
_LAST_WORDS_S = 15
_ROOT = Path(__file__).resolve().parents[3]

_JOB = """\
#!/bin/bash
{options}
# Written by `shardrun submit`. Slurm runs its own copy: to change something, change the job file and submit that.
set -euo pipefail
folder={folder}
if [ ! -r "$folder/{node_script}" ]; then
    echo "shardrun: error: $folder is not there on $(hostname); submit from a folder that all nodes share" >&2
    exit 2
fi
rm -f "$folder"/result* # where Slurm starts the job again
{endpoint}
# scancel and the time limit send SIGTERM to this shell too: it lives on to keep how the job ended.
trap ':' TERM
code=0
# One launcher a node. When the first has ended, the others have {last_words_s} s to say why they end too.
srun {step} \\
    bash "$folder/{node_script}"{arguments} || code=$?

# srun tells the highest exit code; the run's own is that of the first launcher that was not stopped by a signal.
for ((node = 0; node < SLURM_JOB_NUM_NODES; node++)); do
    own=0
    [ ! -r "$folder/result-$node" ] || read -r own < "$folder/result-$node"
    if ((own > 0 && own < 128)); then
        code=$own
        break
    fi
done
printf '{{"job_id": "%s", "exit_code": %d, "ended_at": %d}}\\n' "$SLURM_JOB_ID" "$code" "$(date +%s)" \\
    > "$folder/.{result}" && mv "$folder/.{result}" "$folder/{result}"
exit "$code"
"""

_NODE = """\
#!/bin/bash
# Written by `shardrun submit`; job.sbatch runs it on each node.
set -eo pipefail
folder={folder}
keep() {{
    local code=$?
    {{ echo "$code" > "$folder/.result-$SLURM_NODEID" && mv "$folder/.result-$SLURM_NODEID" \\
        "$folder/result-$SLURM_NODEID"; }} || true{end_others}
}}
trap keep EXIT
{setup}{env}export PYTHONPATH={root}${{PYTHONPATH:+:$PYTHONPATH}}

# Slurm sends SIGTERM to this shell too: it lives on until shardrun has ended.
trap ':' TERM
code=0
# The shell's own word for a program that was killed is the program's whole command.
exec 3>&2 2> /dev/null
{python} -P -m launcher run "$folder/{job_file}"{overrides} 2>&3 3>&- || code=$?
exec 2>&3
case $code in
    129 | 130 | 143) ;; # it has said so itself
    *) [ "$code" -lt 129 ] || echo "shardrun: the launcher on $(hostname) was ended by signal $((code - 128))" >&2 ;;
esac
exit "$code"
"""

# Of several nodes.
_END_OTHERS = """
    if [ "$code" = 2 ]; then
        # Who was refused alone has met nobody: the others would wait for it.
        sleep 3
        local ended=("$folder"/result-*)
        [ ${#ended[@]} -ge "$SLURM_JOB_NUM_NODES" ] ||
            scancel --signal=TERM --quiet "$SLURM_JOB_ID.$SLURM_STEP_ID" || true
    fi"""

_SETUP = """\
trap 'echo "shardrun: error: on $(hostname) this line of cluster.setup failed: $BASH_COMMAND" >&2; exit 2' ERR
# cluster.setup
{lines}
trap - ERR
"""

_ENDPOINT = """
read -r head < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
endpoint="$head:{port}"
# A job that Slurm starts again is another run.
run="$SLURM_JOB_ID-${{SLURM_RESTART_COUNT:-0}}"
"""


def job_script(job: Job, section: SlurmSection, folder: Path) -> str:
    """What sbatch is given. Every value has been checked."""
    several = job.options.parallel.nnodes > 1
    port = str(section.port or f"$(({_FIRST_PORT} + SLURM_JOB_ID % {_PORTS}))")
    return _JOB.format(
        options="\n".join(f"#SBATCH {option}" for option in sbatch_options(job, section, folder)),
        folder=shlex.quote(str(folder)),
        endpoint=_ENDPOINT.format(port=port) if several else "",
        step=_step(cpus(job, section)),
        last_words_s=_LAST_WORDS_S,
        arguments=' "$endpoint" "$run"' if several else "",
        node_script=NODE_SCRIPT,
        result=RESULT,
    )


def node_script(job: Job, section: SlurmSection, folder: Path) -> str:
    """What each node runs: the user's lines, then the launcher, which starts this node's ranks."""
    several = job.options.parallel.nnodes > 1
    overrides = {"parallel.log_dir": shlex.quote(str(folder / "logs"))} if job.options.parallel.log_dir is None else {}
    if section.requeue and job.options.generation.output and not job.options.generation.resume:
        overrides["generation.resume"] = '"$([ "${SLURM_RESTART_COUNT:-0}" = 0 ] && echo false || echo true)"'
    if several:
        overrides |= {
            "parallel.rdzv_backend": "static",
            "parallel.node_rank": '"$SLURM_NODEID"',
            "parallel.rdzv_endpoint": '"$1"',
            "parallel.rdzv_id": '"$2"',
        }
    return _NODE.format(
        folder=shlex.quote(str(folder)),
        end_others=_END_OTHERS if several else "",
        setup=_SETUP.format(lines="\n".join(section.setup)) if section.setup else "",
        env="".join(f"export {name}={shlex.quote(value)}\n" for name, value in job.env.items()),
        root=shlex.quote(str(_ROOT)),
        python=shlex.quote(sys.executable),
        job_file=JOB_FILE,
        overrides="".join(f" \\\n    {key}={value}" for key, value in overrides.items()),
    )


def sbatch_options(job: Job, section: SlurmSection, folder: Path) -> list[str]:
    """sbatch's options as they stand in the script, quoted."""
    options = {
        "job-name": job.name,
        "nodes": str(job.options.parallel.nnodes),
        "ntasks-per-node": "1",
        **{key: getattr(section, key) for key in ("partition", "account", "qos", "time", "mem", "constraint")},
        "cpus-per-task": _text(cpus(job, section)),
        "gpus-per-node": _text(gpus(job, section) or None),
        "exclusive": "" if section.exclusive else None,
        "nodelist": section.nodelist,
        "exclude": section.exclude,
        "output": section.output or f"{str(folder).replace('%', '%%')}/slurm-%j.log",
        "open-mode": "append",
        "requeue" if section.requeue else "no-requeue": "",
        **{key.replace("_", "-"): value for key, value in (section.extra or {}).items()},
    }
    return [
        f"--{key}" + (f"={shlex.quote(value)}" if value else "") for key, value in options.items() if value is not None
    ]


def cpus(job: Job, section: SlurmSection) -> int | None:
    """Cores for the ranks of a node: one a rank where nothing is said, as Slurm would give one to all."""
    if section.cpus_per_task is not None or section.exclusive:
        return section.cpus_per_task
    return _ranks(job)


def gpus(job: Job, section: SlurmSection) -> int | None:
    """GPUs of a node; 0 where they are asked for in another way, as by `extra: {gres: ...}`."""
    if section.gpus_per_node is None and job.options.parallel.device == "cuda":
        return _ranks(job)
    return section.gpus_per_node


def _ranks(job: Job) -> int | None:
    """Ranks of a node, where the job says how many."""
    ranks = job.options.parallel.nproc_per_node
    return 1 if ranks is None else ranks if isinstance(ranks, int) else None


def _step(cores: int | None) -> str:
    """srun's options; it does not take the number of cores from the job."""
    words = ["--ntasks-per-node=1", "--kill-on-bad-exit=0", f"--wait={_LAST_WORDS_S}", "--export=ALL", "--mpi=none"]
    return " ".join(words if cores is None else [*words, f"--cpus-per-task={cores}"])


def _text(number: int | None) -> str | None:
    return None if number is None else str(number)
