"""Logits and greedy tokens on any number of ranks are the uncut model's.

A rank's slice is the same to the bit whatever the files were cut for (tests/unit/model/checkpoint/test_loading.py),
so one source is enough here for each number of ranks; it is the one whose cut is the most unlike.
"""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from model.checkpoint.checkpoint import Checkpoint
from model.checkpoint.opening import open_checkpoint
from parallel import Mesh, World
from parallel.collectives import all_reduce
from tests.distributed.answers import Answer, answer, require_answer
from tests.distributed.pool import Pool
from tests.distributed.threads import run_as_threads
from tests.minis import MINIS
from tests.reference import Reference, greedy

DEMO = Path(__file__).resolve().parents[2] / "configs" / "demo"
PROMPTS = [[1, 7, 3, 39, 12], [5, 2]]
NEW_TOKENS = 6
# Those of published files; 5 and 7 deal out heads in other ways, the last is a head a rank.
RANKS = (1, 2, 3, 4, 5, 6, 7, 8, 12, 16, 24, 26)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def uncut_answer(folder: Path) -> Answer:
    reference = Reference(folder)
    rows = [greedy(reference, prompt, NEW_TOKENS) for prompt in PROMPTS]
    assert len({token for row in rows for token in row}) > 3, "tokens that repeat would hide a fault"
    return reference.logits(PROMPTS[0]), rows


def answer_from(checkpoint: Checkpoint) -> Callable[[Mesh], Answer]:
    return lambda mesh: answer(checkpoint, mesh, PROMPTS, NEW_TOKENS)


@pytest.mark.parametrize("name", MINIS)
def test_a_miniature_on_any_number_of_ranks_answers_as_the_uncut_reference(name: str, tmp_path: Path) -> None:
    mini = MINIS[name]
    wanted = uncut_answer(mini.write(tmp_path / "whole", 1))
    checkpoint = open_checkpoint(mini.write(tmp_path / "cut", mini.even_mp[-1]))
    for ranks in (ranks for ranks in RANKS if ranks <= mini.n_heads):
        require_answer(run_as_threads(ranks, answer_from(checkpoint)), wanted)


@pytest.mark.parametrize("ranks", [3, 8])
def test_the_demo_checkpoint_on_any_number_of_ranks_answers_as_the_uncut_reference(ranks: int) -> None:
    checkpoint = open_checkpoint(DEMO)
    require_answer(run_as_threads(ranks, answer_from(checkpoint)), uncut_answer(DEMO))


def answer_of_a_folder(world: World, folder: Path) -> Answer:
    return answer_from(open_checkpoint(folder))(world.mesh)


@pytest.mark.parametrize("name", ["16 heads, 2 KV heads", "26 heads"])
@pytest.mark.parametrize("ranks", [3, 4], indirect=True, ids="{}-ranks".format)
def test_ranks_that_are_processes_answer_as_those_that_are_threads(ranks: Pool, name: str, tmp_path: Path) -> None:
    folder = MINIS[name].write(tmp_path / "ckpt", 2)
    threads = run_as_threads(ranks.size, answer_from(open_checkpoint(folder)))
    # Gloo adds up in an order of its own.
    require_answer(ranks.run(answer_of_a_folder, folder), threads[0])


def test_a_thread_that_fails_ends_the_others_and_is_the_one_that_is_told() -> None:
    def body(mesh: Mesh) -> None:
        if mesh.rank == 1:
            raise ValueError("the second rank's own fault")
        all_reduce(torch.ones(2), mesh)

    with pytest.raises(ValueError, match="the second rank's own fault"):
        run_as_threads(3, body)
