"""A run of the model: which process this one is, launcher, rank or both, and what it then does."""

import os
import re
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from launcher.command import Arguments
from launcher.console import log_to_stderr, make_log_dir
from launcher.generating.answer_file import check_output
from launcher.generating.preflight import preflight
from launcher.hosts.linking import refuse_on_all_hosts
from launcher.ranks.advice import memory_advice
from launcher.ranks.crew import POSITION
from launcher.ranks.inject import Injector, check_faults, parse_faults
from launcher.ranks.node_ranks import ranks_here
from launcher.ranks.supervisor import Run, supervise
from launcher.settings.options import ParallelSection, RunOptions
from parallel.environment import Environment
from parallel.errors import RefusedError
from parallel.position import position

if TYPE_CHECKING:
    from parallel import World

# It names the folder of the logs.
_RUN_ID = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,63}")


def run(options: RunOptions, arguments: Arguments, env: Environment, name: str = "", workdir: str | None = None) -> int:
    """Run the model; the exit code. `name`: of the job, for the run's id; `workdir`: the current folder of ranks."""
    parallel, output = options.parallel, options.generation.output
    check_parallel(options, env)
    check_workdir(workdir)
    faults = parse_faults(parallel.inject)
    if env.launched:
        check_faults(faults, env.world_size)
        return _as_rank(options, env, workdir)
    ranks = ranks_here(parallel.nproc_per_node, parallel.device)
    try:
        check_faults(faults, ranks * parallel.nnodes)
        # Rank 0 writes it, which runs on host 0.
        if output is not None and _is_host_0(parallel):
            check_output(Path(output), options.generation.resume)
        if ranks * parallel.nnodes == 1 and not parallel.max_restarts:
            return _as_rank(options, env, workdir)
        preflight(options, ranks * parallel.nnodes)
        if parallel.log_dir is not None:
            make_log_dir(parallel.log_dir)
    except RefusedError as error:
        refuse_on_all_hosts(parallel, ranks, str(error))
        raise
    run_id = parallel.rdzv_id or f"{name or options.command}-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}"
    return supervise(
        Run(
            arguments=arguments,
            ranks=ranks,
            run_id=run_id,
            parallel=parallel,
            advise=lambda: memory_advice(options, ranks * parallel.nnodes),
        )
    )


def _is_host_0(parallel: ParallelSection) -> bool:
    """Whether this host is known to be host 0; those that number themselves do not know it yet."""
    return parallel.nnodes == 1 or (parallel.node_rank == 0 and parallel.rdzv_backend == "static")


def check_parallel(options: RunOptions, env: Environment) -> None:
    """Refuse settings that do not go together, or with how this process was started."""
    parallel, ranks = options.parallel, options.parallel.nproc_per_node
    parse_faults(parallel.inject)
    if parallel.rdzv_id is not None and not _RUN_ID.fullmatch(parallel.rdzv_id):
        raise RefusedError(
            f"--rdzv_id is {parallel.rdzv_id!r}; wanted 1 to 64 letters, digits, '.', '_' and '-', the first none of "
            "'.' and '-'"
        )
    if env.launched and isinstance(ranks, int) and ranks != env.local_world_size:
        raise RefusedError(
            f"--nproc_per_node is {ranks} but {env.local_world_size} ranks were started here (LOCAL_WORLD_SIZE); "
            "leave the flag out under torchrun"
        )
    if env.launched and not env.run_folder and (parallel.nnodes > 1 or parallel.max_restarts):
        raise RefusedError("--nnodes and --max_restarts are for our own launcher; under torchrun give them to torchrun")
    if parallel.nnodes == 1 and parallel.node_rank:
        raise RefusedError(
            f"node_rank is {parallel.node_rank} but nnodes is 1; give nnodes on this host too, as on the others"
        )
    if parallel.rdzv_backend == "c10d" and parallel.node_rank is not None:
        raise RefusedError(
            f"node_rank is {parallel.node_rank} but rdzv_backend is c10d, with which hosts number themselves; leave "
            "node_rank out, or take static"
        )
    if parallel.max_restarts and not options.generation.output:
        raise RefusedError(
            f"--max_restarts is {parallel.max_restarts} but there is no --output; answers that were printed cannot be "
            "taken back, those in a file are gone on with"
        )


def check_workdir(workdir: str | None) -> None:
    """Refuse a workdir that cannot be gone to."""
    if workdir is not None and not os.access(workdir, os.X_OK):
        why = "cannot be entered" if Path(workdir).exists() else "does not exist"
        raise RefusedError(f"workdir {workdir}: {why}; wanted a folder, or leave it out")
    if workdir is not None and not Path(workdir).is_dir():
        raise RefusedError(f"workdir {workdir}: is not a folder; wanted a folder, or leave it out")


def _as_rank(options: RunOptions, env: Environment, workdir: str | None = None) -> int:
    """Be one rank, or the only process: run, and end in the way that the report says."""
    if workdir is not None:
        # Ranks alone: they have read their arguments, whose paths start from where the command was typed.
        os.chdir(workdir)
    if env.run_folder:
        position.share(Path(env.run_folder) / POSITION.format(env.rank))
    _log(options.parallel, env)
    injector = Injector(parse_faults(options.parallel.inject), env.rank, env.attempt)
    if env.attempt and options.generation.output:
        options = replace(options, generation=replace(options.generation, resume=True))
    ready = None if env.launched else preflight(options, 1)
    # These load torch: only now, when the settings are known to be good.
    from launcher.ranks import worker
    from launcher.ranks.lifetime import live

    def act(world: "World") -> None:
        worker.run(options, world, ready, injector)
        injector.end()

    return live(env, options.parallel, lambda: worker.meet(options), act)


def _log(parallel: ParallelSection, env: Environment) -> None:
    # Under our own launcher each rank's stderr is kept by it; elsewhere each rank keeps its own log.
    own_log = parallel.log_dir is not None and not env.run_folder
    log_file = make_log_dir(str(parallel.log_dir)) / f"rank{env.rank}.log" if own_log else None
    log_to_stderr(env.rank, to_terminal=env.rank == 0 or not env.run_folder, log_file=log_file)
