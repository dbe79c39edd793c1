"""What it costs to know where every rank is: a collective that is written down, and a look at a rank.

.venv/bin/python scripts/bench_position.py
"""

import os
import tempfile
import timeit
from pathlib import Path

from launcher.ranks.host import held_bytes, state_of
from launcher.ranks.watch import Seen
from parallel.position import position, read_position


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "position"
        position.share(file)
        position.phase("decoding")

        def collective() -> None:
            with position.waits_in("all-reduce"):
                pass

        def look() -> Seen:
            held_bytes(os.getpid())
            return Seen(position=read_position(file) or position.now(), state=state_of(os.getpid()))

        for what, act, times in (("a collective", collective, 100_000), ("a look at a rank", look, 2_000)):
            seconds = min(timeit.repeat(act, number=times, repeat=5)) / times
            print(f"{what}: {seconds * 1e6:.2f} microseconds")


if __name__ == "__main__":
    main()
