"""On a GPU: the same answers as on the CPU, alone, over NCCL, and with ranks that share a GPU over gloo.

.venv/bin/python -m pytest -m gpu
"""

import json
from pathlib import Path

import pytest
import torch

from model.checkpoint.loading import load_weights
from model.checkpoint.opening import open_checkpoint
from tests.end_to_end.command import Running
from tests.minis import MINIS

DEMO = Path(__file__).resolve().parents[2] / "configs" / "demo"
FLAGS = ["--prompts", '["Once upon a time", "One day"]', "--max_gen_len", "40", "--dtype", "float32"]
FLAGS += ["--json"]
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")]


def tokens(folder: Path, *flags: str, ranks: int = 2) -> list[list[int]]:
    greedy = [] if "--temperature" in flags else ["--temperature", "0"]
    words = ["complete", "--ckpt_dir", str(DEMO), "--nproc_per_node", str(ranks), *FLAGS, *greedy, *flags]
    with Running(words, folder) as running:
        outcome = running.end()
    assert outcome.code == 0, outcome.err
    return [json.loads(line)["tokens"] for line in outcome.out.splitlines()]


@pytest.fixture(scope="module")
def on_the_cpu(tmp_path_factory: pytest.TempPathFactory) -> list[list[int]]:
    return tokens(tmp_path_factory.mktemp("cpu"), "--device", "cpu")


def test_two_ranks_share_a_gpu_over_gloo_and_answer_as_on_the_cpu(on_the_cpu: list[list[int]], tmp_path: Path) -> None:
    assert tokens(tmp_path, "--device", "cuda", "--backend", "gloo") == on_the_cpu


def test_three_ranks_cut_two_shards_anew_on_one_gpu_and_answer_as_on_the_cpu(
    on_the_cpu: list[list[int]], tmp_path: Path
) -> None:
    assert tokens(tmp_path, "--device", "cuda", "--backend", "gloo", ranks=3) == on_the_cpu


@pytest.mark.parametrize(
    "flags",
    [
        ["--num_beams", "3", "--repetition_penalty", "1.2"],
        ["--penalty_alpha", "0.6", "--top_k", "4"],
        ["--num_return_sequences", "2", "--temperature", "0.8", "--top_k", "20", "--min_p", "0.02"],
    ],
    ids=["beams", "contrastive", "draws"],
)
def test_searches_and_draws_on_a_gpu_are_those_on_the_cpu(flags: list[str], tmp_path: Path) -> None:
    on_the_cpu = tokens(tmp_path, "--device", "cpu", *flags)
    assert tokens(tmp_path, "--device", "cuda", "--backend", "gloo", *flags) == on_the_cpu


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", ["12 heads", "24 heads, 8 KV heads"])
def test_slices_on_a_gpu_are_those_on_the_cpu(name: str, dtype: torch.dtype, tmp_path: Path) -> None:
    checkpoint = open_checkpoint(MINIS[name].write(tmp_path / "ckpt", 2))
    for ranks in (1, 2, 3, 12):
        for rank in range(ranks):
            on_cpu, on_gpu = (
                load_weights(checkpoint, rank, ranks, dtype, torch.device(device)) for device in ("cpu", "cuda")
            )
            assert list(on_gpu) == list(on_cpu)
            assert all(on_gpu[key].is_cuda and torch.equal(on_gpu[key].cpu(), on_cpu[key]) for key in on_cpu)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="NCCL needs a GPU for each rank")
def test_two_gpus_over_nccl_answer_as_on_the_cpu(on_the_cpu: list[list[int]], tmp_path: Path) -> None:
    assert tokens(tmp_path, "--device", "cuda", "--backend", "nccl") == on_the_cpu


@pytest.mark.skipif(torch.cuda.device_count() != 1, reason="needs exactly one GPU")
def test_nccl_for_two_ranks_on_one_gpu_is_refused_before_loading(tmp_path: Path) -> None:
    with Running(["complete", "--ckpt_dir", str(DEMO), "--nproc_per_node", "2", *FLAGS], tmp_path) as running:
        outcome = running.end()
    assert outcome.code == 2
    assert "2 ranks on this host but 1 visible CUDA device" in outcome.err
