"""On a GPU: the same answers as on the CPU, alone, over NCCL, and with ranks that share a GPU over gloo.

.venv/bin/python -m pytest -m gpu
"""

import json
from pathlib import Path

import pytest
import torch

from tests.end_to_end.command import Running

DEMO = Path(__file__).resolve().parents[2] / "configs" / "demo"
FLAGS = ["--prompts", '["Once upon a time", "One day"]', "--max_gen_len", "40", "--dtype", "float32"]
FLAGS += ["--temperature", "0", "--json"]
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")]


def tokens(folder: Path, *flags: str) -> list[list[int]]:
    with Running(["complete", "--ckpt_dir", str(DEMO), "--nproc_per_node", "2", *FLAGS, *flags], folder) as running:
        outcome = running.end()
    assert outcome.code == 0, outcome.err
    return [json.loads(line)["tokens"] for line in outcome.out.splitlines()]


@pytest.fixture(scope="module")
def on_the_cpu(tmp_path_factory: pytest.TempPathFactory) -> list[list[int]]:
    return tokens(tmp_path_factory.mktemp("cpu"), "--device", "cpu")


def test_two_ranks_share_a_gpu_over_gloo_and_answer_as_on_the_cpu(on_the_cpu: list[list[int]], tmp_path: Path) -> None:
    assert tokens(tmp_path, "--device", "cuda", "--backend", "gloo") == on_the_cpu


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="NCCL needs a GPU for each rank")
def test_two_gpus_over_nccl_answer_as_on_the_cpu(on_the_cpu: list[list[int]], tmp_path: Path) -> None:
    assert tokens(tmp_path, "--device", "cuda", "--backend", "nccl") == on_the_cpu


@pytest.mark.skipif(torch.cuda.device_count() != 1, reason="needs exactly one GPU")
def test_nccl_for_two_ranks_on_one_gpu_is_refused_before_loading(tmp_path: Path) -> None:
    with Running(["complete", "--ckpt_dir", str(DEMO), "--nproc_per_node", "2", *FLAGS], tmp_path) as running:
        outcome = running.end()
    assert outcome.code == 2
    assert "2 ranks on this host but 1 visible CUDA device" in outcome.err
