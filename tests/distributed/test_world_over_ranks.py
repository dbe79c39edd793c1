"""What the ranks tell each other, and how they refuse together."""

import os
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch.distributed as dist

from parallel import RefusedError, World, start_world
from tests.distributed.pool import Pool, RankError
from tests.distributed.verdicts import Verdict, the_same_on_all, verdict

SEVERAL = pytest.mark.parametrize("ranks", [2, 4], indirect=True, ids="{}-ranks".format)
TWO = pytest.mark.parametrize("ranks", [2], indirect=True, ids="{}-ranks".format)


def together_with_faults(world: World, faults: dict[int, Exception]) -> Verdict:
    def act() -> int:
        if world.mesh.rank in faults:
            raise faults[world.mesh.rank]
        return world.mesh.rank

    return verdict(lambda: world.together("reading the weights", act))


def agree_on(world: World, everyones: list[dict[str, object]]) -> Verdict:
    return verdict(lambda: world.agree("flags", everyones[world.mesh.rank]))


def waits_for_the_last_rank(world: World) -> Verdict:
    """The last rank stays away; the store is a corner of its own, so that nothing is out of step after."""
    assert world.store is not None
    if world.env.rank == world.env.world_size - 1:
        return "stayed away", ""
    corner = dist.PrefixStore("waits_for_the_last_rank", world.store)
    hurried = replace(world, store=corner, timeout_s=0.5, owns_group=False)
    return verdict(lambda: hurried.together("reading the weights", lambda: None))


def started_again(world: World, everyones: list[dict[str, object]], pause_s: float) -> Verdict:
    """start_world where a process group stands already; the last rank comes `pause_s` later."""
    if world.env.rank == world.env.world_size - 1:
        time.sleep(pause_s)
    settings = everyones[world.env.rank]
    return verdict(lambda: start_world(device="cpu", settings=settings, timeout_s=5).mesh.size)


def started_again_with_backend(world: World, backends: list[str]) -> Verdict:
    return verdict(lambda: start_world(device="cpu", backend=backends[world.env.rank], timeout_s=2).mesh.size)


def start_refused_on_rank_1(size: int) -> World:
    backend = "nccl" if os.environ["RANK"] == "1" else "gloo"
    return start_world(device="cpu", backend=backend, timeout_s=10)


@SEVERAL
def test_a_refusal_on_one_rank_is_the_same_sentence_on_all(ranks: Pool) -> None:
    faults = {1: RefusedError("the folder is empty")}
    assert the_same_on_all(ranks.run(together_with_faults, faults)) == (
        "RefusedError",
        "rank 1: the folder is empty",
    )


@SEVERAL
def test_a_fault_on_one_rank_is_raised_there_and_told_on_the_others(ranks: Pool) -> None:
    *others, last = ranks.run(together_with_faults, {ranks.size - 1: OSError("disk is gone")})
    assert last == ("OSError", "disk is gone")
    assert the_same_on_all(others) == (
        "PeerFailedError",
        f"rank {ranks.size - 1} failed while reading the weights: OSError: disk is gone",
    )


@SEVERAL
def test_a_refusal_on_every_rank_names_no_rank(ranks: Pool) -> None:
    faults = {rank: RefusedError("the folder is empty") for rank in range(ranks.size)}
    assert the_same_on_all(ranks.run(together_with_faults, faults)) == ("RefusedError", "the folder is empty")


@SEVERAL
def test_a_fault_is_told_before_a_refusal(ranks: Pool) -> None:
    faults = {0: RefusedError("the folder is empty"), 1: OSError("disk is gone")}
    refused, failed, *others = ranks.run(together_with_faults, faults)
    assert failed == ("OSError", "disk is gone")
    assert the_same_on_all([refused, *others]) == (
        "PeerFailedError",
        "rank 1 failed while reading the weights: OSError: disk is gone",
    )


@SEVERAL
def test_refusals_that_differ_are_told_as_that_of_the_first_rank(ranks: Pool) -> None:
    faults = {rank: RefusedError(f"folder {rank} is empty") for rank in range(ranks.size)}
    assert the_same_on_all(ranks.run(together_with_faults, faults)) == ("RefusedError", "rank 0: folder 0 is empty")


@SEVERAL
def test_without_a_fault_each_rank_gets_its_own_result_also_after_an_error(ranks: Pool) -> None:
    ranks.run(together_with_faults, {0: RefusedError("once")})
    assert ranks.run(together_with_faults, {}) == [("returned", str(rank)) for rank in range(ranks.size)]


@SEVERAL
def test_a_rank_that_stays_away_is_named_by_the_others(ranks: Pool) -> None:
    last = ranks.size - 1
    *waiting, _ = ranks.run(waits_for_the_last_rank)
    assert the_same_on_all(waiting) == (
        "PeerFailedError",
        f"rank {last} was not heard of for 0.5 s while reading the weights; see its log",
    )


@SEVERAL
def test_settings_that_differ_are_refused_with_their_name_and_the_ranks(ranks: Pool) -> None:
    everyones: list[dict[str, object]] = [{"seed": 1, "max_seq_len": 128} for _ in range(ranks.size)]
    everyones[-1]["max_seq_len"] = 256
    assert the_same_on_all(ranks.run(agree_on, everyones)) == (
        "RefusedError",
        f"the ranks disagree on max_seq_len (flags): rank 0 has 128, rank {ranks.size - 1} has 256; "
        "start every rank with the same settings and files",
    )


@SEVERAL
def test_a_setting_that_one_rank_lacks_is_refused(ranks: Pool) -> None:
    everyones: list[dict[str, object]] = [{"seed": 1} for _ in range(ranks.size)]
    everyones[0] = {}
    assert the_same_on_all(ranks.run(agree_on, everyones)) == (
        "RefusedError",
        'the ranks disagree on seed (flags): rank 0 has "(absent)", rank 1 has 1; '
        "start every rank with the same settings and files",
    )


@SEVERAL
def test_equal_settings_pass(ranks: Pool) -> None:
    settings: dict[str, object] = {"seed": 1, "folder": Path("weights"), "top_p": 0.9, "prompts": ["a", "b"]}
    assert the_same_on_all(ranks.run(agree_on, [settings] * ranks.size)) == ("returned", "None")


@SEVERAL
def test_a_world_that_stands_already_is_used_again(ranks: Pool) -> None:
    same: list[dict[str, object]] = [{"first": True}] * ranks.size
    assert the_same_on_all(ranks.run(started_again, same, 0.0)) == ("returned", str(ranks.size))


@TWO
def test_a_world_that_is_used_again_hears_what_the_ranks_say_now(ranks: Pool) -> None:
    ranks.run(started_again, [{"seed": 1}, {"seed": 1}], 0.0)
    refused = ranks.run(started_again, [{"seed": 1}, {"seed": 2}], 0.5)
    assert the_same_on_all(refused) == (
        "RefusedError",
        "the ranks disagree on seed (at the start): rank 0 has 1, rank 1 has 2; "
        "start every rank with the same settings and files",
    )


@TWO
def test_a_backend_refused_on_one_rank_of_a_world_that_is_used_again_is_refused_on_all(ranks: Pool) -> None:
    kind, text = the_same_on_all(ranks.run(started_again_with_backend, ["gloo", "nccl"]))
    assert kind == "RefusedError"
    assert text.startswith("rank 1: --backend nccl needs a GPU for each rank: --device cpu was asked for")


def test_a_backend_refused_on_one_rank_ends_every_rank_with_the_same_sentence(tmp_path: Path) -> None:
    pool = Pool(2, tmp_path, start_refused_on_rank_1)
    with pytest.raises(RankError) as caught:
        pool.run(together_with_faults, {})
    assert "ranks 0, 1 raised" in str(caught.value)
    assert "RefusedError: rank 1: --backend nccl needs a GPU for each rank: --device cpu was asked for" in str(
        caught.value
    )
