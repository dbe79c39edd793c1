"""The front of the package: its names, its errors, its seed."""

import subprocess
import sys

import pytest
import torch

import parallel
from parallel.errors import PeerFailedError, RankFailedError, RefusedError, ShardrunError, one_of
from parallel.seed import seed_everything


@pytest.mark.parametrize("name", parallel.__all__)
def test_every_public_name_can_be_imported(name: str) -> None:
    assert getattr(parallel, name).__name__ == name


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'parallel' has no attribute 'TensorParallel'"):
        parallel.TensorParallel  # noqa: B018


def test_importing_the_package_and_its_arithmetic_does_not_wait_for_torch() -> None:
    script = (
        "import sys, parallel, parallel.slices, parallel.environment, parallel.errors; print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=30, check=True)
    assert done.stdout == "False\n"


def test_a_refusal_ends_with_2_a_failed_rank_with_3() -> None:
    assert (RefusedError.exit_code, RankFailedError.exit_code) == (2, 3)
    assert issubclass(RefusedError, ShardrunError) and issubclass(RefusedError, ValueError)
    assert PeerFailedError("rank 1 failed").exit_code == 3
    assert issubclass(RankFailedError, ShardrunError) and issubclass(RankFailedError, RuntimeError)


@pytest.mark.parametrize(("choices", "text"), [([1], "1"), ([1, 2], "1 or 2"), (["a", "b", "c"], "a, b or c")])
def test_choices_stand_in_a_sentence(choices: list[int] | list[str], text: str) -> None:
    assert one_of(choices) == text


def test_one_seed_gives_the_same_numbers_again() -> None:
    seed_everything(5)
    first = torch.rand(4)
    seed_everything(5)
    assert torch.equal(torch.rand(4), first)
