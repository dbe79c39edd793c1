"""Memory that runs out (FAULTS C75): seen before it does, or told with figures when the kernel has killed a rank."""

import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.end_to_end.command import WHILE_LOADING_S, Running, assert_refused, complete, run
from tests.end_to_end.drills import ENDLESS, PROMPTS, Healthy, at_work, two_ranks, wait_for_answer
from tests.sparse_shards import Published, write_sparse_folder

# As a Llama 2 70B, but with the vocabulary of the tests' tokenizer; the files take no room.
LARGE = Published(mp=2, dim=8192, layers=80, heads=64, kv_heads=8, ffn=28672, vocabulary=300, embedding_dim=1)
LARGE_JSON = {
    "dim": 8192,
    "n_layers": 80,
    "n_heads": 64,
    "n_kv_heads": 8,
    "vocab_size": -1,
    "multiple_of": 4096,
    "ffn_dim_multiplier": 1.3,
    "norm_eps": 1e-5,
}
LARGE_BYTES = 68e9 * 4


@pytest.mark.parametrize("ranks", ["1", "2"])
def test_C75_weights_that_do_not_fit_are_refused_before_any_is_read(ranks: str, tokenizer: bytes, case: Path) -> None:
    if os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") > LARGE_BYTES:
        pytest.skip("this machine has more memory than the example takes")
    folder = write_sparse_folder(case / "large", LARGE, LARGE_JSON)
    (folder / "tokenizer.model").write_bytes(tokenizer)
    # In bfloat16 they could stay in their files.
    outcome = run(complete("large", "--dtype", "float32", "--nproc_per_node", ranks), case)
    says = [r"the weights: ", "GB) are needed on this host, ", "are free; use more ranks on more devices"]
    assert_refused(outcome, says, WHILE_LOADING_S, alone=False)


LIMIT_BYTES = 1_500_000_000
# Takes memory until the kernel has killed somebody.
GLUTTON = """
import sys
from pathlib import Path
folder, name, taken = Path(sys.argv[1]), sys.argv[2], []
(folder / "cgroup.procs").write_text("0")
def kills():
    return [line for line in (folder / name).read_text().splitlines() if line.startswith("oom_kill ")]
before = kills()
while kills() == before:
    taken.append(b"x" * 2**22)
"""


@contextmanager
def memory_group() -> Iterator[tuple[Path, str]]:
    """A control group with a limit of memory, and its file that counts kills. Skips where none can be made."""
    version_1, version_2 = Path("/sys/fs/cgroup/memory"), Path("/sys/fs/cgroup")
    if (version_1 / "memory.limit_in_bytes").exists():
        parent, limit, events = version_1, "memory.limit_in_bytes", "memory.oom_control"
    elif "memory" in _text(version_2 / "cgroup.subtree_control").split():
        parent, limit, events = version_2, "memory.max", "memory.events"
    else:
        pytest.skip("there is no control group of memory here below which one could be made")
    folder = parent / f"shardrun-test-{os.getpid()}"
    try:
        folder.mkdir()
        (folder / limit).write_text(str(LIMIT_BYTES))
    except OSError as error:
        pytest.skip(f"no control group with a limit of memory can be made here: {error.strerror}")
    try:
        yield folder, events
    finally:
        _remove(folder)


def _text(path: Path) -> str:
    return path.read_text() if path.exists() else ""


def _remove(folder: Path) -> None:
    """When the last of its processes has gone."""
    deadline = time.monotonic() + 10
    while True:
        try:
            folder.rmdir()
            return
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)


@pytest.mark.drill
def test_C75_a_rank_that_the_kernel_kills_for_want_of_memory_says_so_with_figures(healthy: Healthy, case: Path) -> None:
    asked = complete(two_ranks(healthy), *ENDLESS, "--nproc_per_node", "2", prompts=PROMPTS)
    with memory_group() as (group, events):
        joining = ("sh", "-c", 'echo $$ > "$0"/cgroup.procs; exec "$@"', str(group))
        with Running(asked, case, wrapper=joining) as running:
            wait_for_answer(running)
            # Its choice, not its killing: the rank and whoever takes the memory hold about the same.
            Path(f"/proc/{running.ranks()[1]}/oom_score_adj").write_text("1000")
            running.fault_s = time.monotonic()
            subprocess.run([sys.executable, "-c", GLUTTON, str(group), events], check=True, timeout=60)
            killed_s = time.monotonic()
            outcome = running.end()
            assert time.monotonic() - killed_s < 5
    assert (outcome.code, outcome.left) == (3, [])
    (error,) = outcome.errors
    found = re.match(
        r"shardrun: error: rank 1 \(pid \d+, host \S+\) was killed by SIGKILL while decoding \(step .*\): its control "
        r"group's memory ran out, and the kernel killed it \(it held ([\d.]+) GB, ([\d.e-]+) of 1.5 GB of its control "
        r"group's memory were free\); fewer sequences \(--max_batch_size\), .*plan: at MP 2 a rank takes",
        error,
    )
    assert found is not None, error
    assert 0.02 < float(found[1]) < 1.5
    assert float(found[2]) < 0.8


def test_C75_a_rank_that_somebody_kills_is_not_said_to_have_run_out_of_memory(healthy: Healthy, case: Path) -> None:
    with at_work(two_ranks(healthy), case, "--nproc_per_node", "2") as running:
        os.kill(running.ranks()[1], 9)
        (error,) = running.end().errors
    assert "by somebody, or because" in error
    assert "the kernel killed it" not in error
