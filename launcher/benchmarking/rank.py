"""One rank of `bench`, or the only process, from its task to its end."""

from dataclasses import asdict
from pathlib import Path

from launcher.benchmarking.delivery import deliver
from launcher.benchmarking.measuring import log, measure
from launcher.benchmarking.task import Task
from launcher.console import log_to_stderr
from launcher.ranks.crew import POSITION
from launcher.ranks.lifetime import live
from launcher.settings.options import ParallelSection
from parallel import World, start_world
from parallel.environment import Environment
from parallel.position import position

# Files that only rank 0 writes, and may stand elsewhere on another host.
_OF_RANK_0 = ("plot", "output", "json")


def run_rank(task: Task, env: Environment) -> int:
    """Meet the other ranks, measure, and have rank 0 give out the results; the exit code."""
    if env.run_folder:
        position.share(Path(env.run_folder) / POSITION.format(env.rank))
    log_to_stderr(env.rank, to_terminal=env.rank == 0 or not env.run_folder)

    def act(world: World) -> None:
        bench = measure(task, world)
        world.together("giving out the results", lambda: deliver(bench, task.options) if env.rank == 0 else None)

    return live(env, ParallelSection(timeout_s=task.options.timeout_s), lambda: _meet(task), act)


def _meet(task: Task) -> World:
    options = task.options
    world = start_world(
        device=options.device,
        backend=options.backend,
        settings={name: value for name, value in asdict(options).items() if name not in _OF_RANK_0},
        timeout_s=options.timeout_s,
    )
    log.info("%d rank%s: %s", world.mesh.size, "s" if world.mesh.size > 1 else "", world.placement.reason)
    return world
