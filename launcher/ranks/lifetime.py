"""A rank's life, or that of the only process, whatever it has to do: meet, act, and end in the way the report says."""

import bdb
import os
from collections.abc import Callable

from launcher.console import leave_stdout
from launcher.ranks.report import READER_GONE, report_rank, stop_on_signals
from launcher.ranks.self_watch import SelfWatch
from launcher.settings.options import ParallelSection
from parallel import World
from parallel.environment import Environment
from parallel.position import ENDING, position


def live(env: Environment, parallel: ParallelSection, meet: Callable[[], World], act: Callable[[World], object]) -> int:
    """Run `act` among the ranks that `meet` brings together; the exit code. Collective."""
    stop_on_signals()
    world = None
    try:
        world = meet()
        # Our own launcher watches its ranks; others do it themselves.
        watch = SelfWatch(world, 0.0 if env.run_folder else parallel.heartbeat_s, parallel.timeout_s)
        act(world)
        watch.end()
        position.phase(ENDING)
        world.close()
        return 0
    except BrokenPipeError:
        leave_stdout()
        os._exit(READER_GONE)
    except bdb.BdbQuit:
        raise  # the user left the debugger
    except BaseException as error:
        code = report_rank(error, env, world)
        if world is None or world.store is None:
            return code
        if not env.run_folder:
            world.farewell()
        # Destroying a group whose ranks have gone may wait for ever.
        os._exit(code)
