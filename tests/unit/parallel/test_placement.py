"""The choice of device, backend and threads: decided from numbers, without a GPU or a process."""

from dataclasses import replace

import pytest

from parallel.environment import Environment, Hardware, Placement, choose_placement, read_hardware
from parallel.errors import RefusedError

NO_GPU = Hardware(cuda_devices=0, cuda_built=True, nccl_built=True, visible_devices=None, cpu_cores=8)
CPU_BUILD = replace(NO_GPU, cuda_built=False, nccl_built=False)
TWO_GPUS = replace(NO_GPU, cuda_devices=2, visible_devices="4,5")


def rank_of(local_world_size: int, local_rank: int = 0, world_size: int | None = None) -> Environment:
    return Environment(
        rank=local_rank,
        world_size=world_size or local_world_size,
        local_rank=local_rank,
        local_world_size=local_world_size,
        launched=True,
    )


def choice(env: Environment, hardware: Hardware, device: str = "auto", backend: str = "auto") -> tuple[str, str | None]:
    placement = choose_placement(env, hardware, device, backend)
    return placement.device, placement.backend


def refusal(env: Environment, hardware: Hardware, device: str = "auto", backend: str = "auto") -> str:
    with pytest.raises(RefusedError) as caught:
        choose_placement(env, hardware, device, backend)
    return str(caught.value)


def test_auto_takes_a_gpu_for_each_rank_and_nccl() -> None:
    assert choice(rank_of(2, 1), TWO_GPUS) == ("cuda:1", "nccl")


def test_auto_takes_the_cpu_and_gloo_where_there_is_no_gpu() -> None:
    assert choice(rank_of(2, 1), NO_GPU) == ("cpu", "gloo")


def test_auto_takes_gloo_on_gpus_where_torch_has_no_nccl() -> None:
    assert choice(rank_of(2, 1), replace(TWO_GPUS, nccl_built=False)) == ("cuda:1", "gloo")


def test_cpu_is_taken_where_it_is_asked_for_though_there_are_gpus() -> None:
    assert choice(rank_of(2, 1), TWO_GPUS, device="cpu") == ("cpu", "gloo")
    assert choice(rank_of(4, 3), TWO_GPUS, device="cpu", backend="gloo") == ("cpu", "gloo")


@pytest.mark.parametrize(("hardware", "device"), [(NO_GPU, "cpu"), (TWO_GPUS, "cuda:0")])
def test_one_process_has_no_backend(hardware: Hardware, device: str) -> None:
    assert choice(Environment(), hardware) == (device, None)
    assert choice(Environment(), hardware, backend="gloo") == (device, None)


def test_gpus_are_counted_against_the_ranks_of_this_host_and_not_of_the_world() -> None:
    assert choice(rank_of(2, 1, world_size=16), TWO_GPUS) == ("cuda:1", "nccl")


def test_gloo_on_gpus_is_taken_where_it_is_asked_for() -> None:
    assert choice(rank_of(2, 1), TWO_GPUS, device="cuda", backend="gloo") == ("cuda:1", "gloo")


@pytest.mark.parametrize("device", ["auto", "cuda"])
@pytest.mark.parametrize("backend", ["auto", "nccl"])
def test_more_ranks_than_gpus_are_refused_with_both_numbers(device: str, backend: str) -> None:
    assert refusal(rank_of(4, 3), TWO_GPUS, device=device, backend=backend) == (
        "4 ranks on this host but 2 visible CUDA devices (LOCAL_RANK=3, CUDA_VISIBLE_DEVICES '4,5'); start at most "
        "2 ranks here, or use --device cpu, or let ranks share GPUs with --device cuda --backend gloo"
    )


def test_more_ranks_than_gpus_are_refused_on_every_rank_and_not_only_on_the_last() -> None:
    assert "4 ranks on this host but 2 visible CUDA devices" in refusal(rank_of(4, 0), TWO_GPUS)


def test_one_gpu_is_singular_and_unset_visible_devices_are_said_to_be_unset() -> None:
    one_gpu = replace(TWO_GPUS, cuda_devices=1, visible_devices=None)
    text = refusal(rank_of(2), one_gpu)
    assert "2 ranks on this host but 1 visible CUDA device (LOCAL_RANK=0, CUDA_VISIBLE_DEVICES not set)" in text


def test_ranks_share_gpus_where_cuda_and_gloo_are_both_asked_for() -> None:
    devices = [choice(rank_of(4, rank), TWO_GPUS, device="cuda", backend="gloo") for rank in range(4)]
    assert devices == [("cuda:0", "gloo"), ("cuda:1", "gloo"), ("cuda:0", "gloo"), ("cuda:1", "gloo")]
    placement = choose_placement(rank_of(4, 3), TWO_GPUS, "cuda", "gloo")
    assert "4 ranks share 2 GPUs, as asked" in placement.reason


@pytest.mark.parametrize(
    ("hardware", "reason"),
    [
        (CPU_BUILD, "this torch was built without CUDA"),
        (NO_GPU, "torch sees no CUDA device"),
        (replace(NO_GPU, visible_devices=""), "torch sees no CUDA device (CUDA_VISIBLE_DEVICES='')"),
    ],
)
def test_cuda_and_nccl_without_a_gpu_are_refused_with_the_reason(hardware: Hardware, reason: str) -> None:
    assert refusal(rank_of(2), hardware, device="cuda") == f"--device cuda: {reason}; use --device cpu"
    assert refusal(rank_of(2), hardware, backend="nccl") == (
        f"--backend nccl needs a GPU for each rank: {reason}; use --backend gloo --device cpu"
    )


def test_nccl_on_the_cpu_is_refused() -> None:
    assert refusal(rank_of(2), TWO_GPUS, device="cpu", backend="nccl") == (
        "--backend nccl needs a GPU for each rank: --device cpu was asked for; use --backend gloo --device cpu"
    )


def test_nccl_is_refused_where_torch_was_built_without_it() -> None:
    assert refusal(rank_of(2), replace(TWO_GPUS, nccl_built=False), backend="nccl") == (
        "--backend nccl: this torch was built without NCCL; use --backend gloo"
    )


@pytest.mark.parametrize(("ranks", "threads"), [(1, 8), (2, 4), (3, 2), (8, 1), (16, 1)])
def test_the_ranks_of_a_host_share_its_cores(ranks: int, threads: int) -> None:
    assert choose_placement(rank_of(ranks), NO_GPU).threads == threads


def test_a_number_of_threads_that_the_user_set_is_kept() -> None:
    assert choose_placement(rank_of(2), NO_GPU, threads=7).threads == 7


def test_the_choice_is_told_with_its_reasons() -> None:
    assert choose_placement(rank_of(2, 1), TWO_GPUS) == Placement(
        device="cuda:1",
        backend="nccl",
        threads=4,
        reason="backend nccl (a GPU for each rank), device cuda:1 (from LOCAL_RANK), 4 CPU threads",
    )
    assert choose_placement(Environment(), replace(CPU_BUILD, cpu_cores=1)).reason == (
        "one process, no process group, device cpu (this torch was built without CUDA), 1 CPU thread"
    )


def test_the_hardware_of_this_host_leads_to_a_choice() -> None:
    hardware = read_hardware()
    assert hardware.cpu_cores >= 1
    assert choose_placement(Environment(), hardware).device == ("cuda:0" if hardware.cuda_devices else "cpu")
