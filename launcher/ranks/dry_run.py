"""What `shardrun run JOB.yaml --dry_run` prints: the job as it was understood, and what would be started.

The whole of it is a job file again, with the rest as comments. Nothing is started and nothing is written.
"""

import os
import shlex
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from launcher.command import Arguments
from launcher.console import print_result
from launcher.generating.answer_file import check_output
from launcher.generating.preflight import Ready, preflight
from launcher.hosts.address import interface_variables
from launcher.ranks.crew import Launch
from launcher.ranks.inject import check_faults, parse_faults
from launcher.ranks.node_ranks import ranks_here
from launcher.ranks.running import check_parallel, check_workdir
from launcher.settings.job import Job
from launcher.settings.job_text import full_job_text
from parallel.environment import Environment

# The last part of a folder's name that is made up when the run begins.
_MADE_UP = "shardrun-XXXXXXXX"
# Which variables differ from rank to rank.
_OF_A_RANK = ("RANK", "LOCAL_RANK")


def dry_run(job: Job, arguments: Arguments, env: Environment) -> int:
    """Print what `run` would do, then refuse what it would refuse. Under torchrun rank 0 speaks."""
    if env.rank:
        return 0
    with _with_variables(job.env) as here:
        ranks = env.local_world_size if env.launched else _ranks(job)
        lines = [*_processes(job, ranks, _without_dry_run(arguments), env, here), "", *_preflight_title(job)]
    head = ["The job as it was understood; `# default` stands behind what has its default."]
    print_result(f"{_comments(head)}{full_job_text(job)}\n{_comments(lines)}")
    # Not before the rest is told: what is refused here may well be right where the job runs.
    if (ready := _checked(job, ranks, env)) is not None:
        print_result(_comments(_readiness(ready)))
    return 0


@contextmanager
def _with_variables(variables: Mapping[str, str]) -> Iterator[Mapping[str, str]]:
    """This process's environment with the job's variables, as in a run; gives what it is without them."""
    before = os.environ.copy()
    os.environ.update(variables)
    try:
        yield before
    finally:
        os.environ.clear()
        os.environ.update(before)


def _comments(lines: Iterable[str]) -> str:
    """The lines as comments; a letter that cannot be seen, or would end a line, is written out."""
    return "".join(f"# {''.join(map(_visible, line))}".rstrip() + "\n" for line in lines)


def _visible(letter: str) -> str:
    return letter if letter.isprintable() else letter.encode("unicode_escape").decode()


def _ranks(job: Job) -> int:
    return ranks_here(job.options.parallel.nproc_per_node, job.options.parallel.device)


def _without_dry_run(arguments: Arguments) -> list[str]:
    kept: list[str] = []
    after_flag = False
    for word in arguments:
        flag, equals, _ = word.replace("-", "_").partition("=")
        is_flag = flag == "__dry_run"
        # `--dry_run true`
        if not is_flag and not (after_flag and word.lower() in ("true", "1", "yes")):
            kept.append(word)
        after_flag = is_flag and not equals
    return kept


def _processes(job: Job, ranks: int, arguments: Arguments, env: Environment, here: Mapping[str, str]) -> Iterator[str]:
    """What would be started on this host, and with which variables beside those of this process."""
    parallel = job.options.parallel
    if job.cluster is not None:
        yield f"`shardrun submit` sends this job to {job.cluster.kind}; `shardrun run` runs it here:"
    if env.launched:
        yield f"processes: {env.world_size} ranks that torchrun has started; this one is rank {env.rank}"
        return
    if ranks * parallel.nnodes == 1 and not parallel.max_restarts:
        yield "processes: one, this one; no other is started"
        yield from (f"  {name}={value}" for name, value in job.env.items())
        return
    yield from _hosts(job, ranks, arguments)
    yield f"processes: {ranks} on this host, each"
    yield f"  {shlex.join([sys.executable, '-P', '-m', 'launcher', *arguments])}"
    launch = _launch(job, ranks, arguments)
    each = [_differing(launch.environ(number), here) for number in range(ranks)]
    shared = {name: value for name, value in each[0].items() if name not in _OF_A_RANK}
    yield "with"
    yield from (f"  {name}={value}" for name, value in sorted(shared.items()))
    if parallel.nnodes > 1:
        yield "  MASTER_ADDR, MASTER_PORT, GLOO_SOCKET_IFNAME, NCCL_SOCKET_IFNAME: known when the hosts have met"
    yield (
        "and, one for each," if parallel.nnodes == 1 else f"and, one for each (on host N, RANK begins at {ranks} x N),"
    )
    yield from ("  " + " ".join(f"{name}={own[name]}" for name in _OF_A_RANK) for own in each)
    if parallel.log_dir is not None:
        yield f"logs: {parallel.log_dir}/{parallel.rdzv_id or f'{job.name}-DATE-TIME-PID'}/rank*.log"


def _differing(environ: Mapping[str, str], here: Mapping[str, str]) -> dict[str, str]:
    unknown = ("MASTER_ADDR", "MASTER_PORT")
    return {name: value for name, value in environ.items() if here.get(name) != value and name not in unknown}


def _hosts(job: Job, ranks: int, arguments: Arguments) -> Iterator[str]:
    parallel = job.options.parallel
    if parallel.nnodes == 1:
        return
    which = "" if parallel.node_rank is None else f", this one is host {parallel.node_rank}"
    yield f"hosts: {parallel.nnodes}{which}; {parallel.nnodes * ranks} ranks in all, MP {parallel.nnodes * ranks}"
    missing = "  every host needs parallel.rdzv_endpoint=HOST:PORT, of host 0; it is not given"
    yield missing if parallel.rdzv_endpoint is None else f"  they meet at {parallel.rdzv_endpoint}"
    if parallel.rdzv_backend == "static" and parallel.node_rank is None:
        words = shlex.join(["shardrun", *arguments])
        yield f"  on each of them: {words} parallel.node_rank=N, with N from 0 to {parallel.nnodes - 1}"


def _launch(job: Job, ranks: int, arguments: Arguments) -> Launch:
    """What the launcher would start; where hosts have to meet first, as if this one were by itself but for ranks."""
    parallel = job.options.parallel
    alone = parallel.nnodes == 1
    folder = Path(tempfile.gettempdir()) / _MADE_UP
    return Launch(
        arguments=arguments,
        first_rank=(parallel.node_rank or 0) * ranks,
        count=ranks,
        world_size=parallel.nnodes * ranks,
        folder=folder,
        logs=folder,
        master=None if alone else ("HOST", 0),
        variables=interface_variables("127.0.0.1", several_hosts=False) if alone else {},
    )


def _preflight_title(job: Job) -> Iterator[str]:
    if Path(job.options.model.ckpt_dir).exists():
        yield "checked before anything is started:"
    else:
        yield f"not checked: {job.options.model.ckpt_dir} is not there on this host"


def _checked(job: Job, ranks: int, env: Environment) -> Ready | None:
    """What `run` checks before it starts anything; None where the checkpoint is not there."""
    options = job.options
    check_parallel(options, env)
    check_faults(parse_faults(options.parallel.inject), ranks * options.parallel.nnodes)
    check_workdir(job.workdir)
    if not Path(options.model.ckpt_dir).exists():
        return None
    if options.generation.output is not None and not options.parallel.node_rank:
        check_output(Path(options.generation.output), options.generation.resume)
    return preflight(options, env.world_size if env.launched else ranks * options.parallel.nnodes)


def _readiness(ready: Ready) -> Iterator[str]:
    yield f"  {ready.found.checkpoint.folder}: a checkpoint that fits, as far as headers tell"
    if ready.requests:
        longest = max(request.length for request in ready.requests)
        faulty = sum(1 for request in ready.requests if request.error is not None)
        skipped = f", {faulty} of them to be skipped" if faulty else ""
        plural = "s" if len(ready.requests) > 1 else ""
        yield f"  {len(ready.requests)} request{plural}{skipped}, the longest of {longest} tokens"
    else:
        yield "  a chat at the terminal"
