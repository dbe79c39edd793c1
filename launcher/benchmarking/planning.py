"""What a size should take of each rank, and which batches fit."""

from dataclasses import replace

import torch

from launcher.amounts import human
from launcher.benchmarking.task import Task
from model.host import available_host_bytes
from model.planning.plan import Plan, RankPlan, Room, Workload, fits, plan_of, shares_of
from parallel import RefusedError, World


def workload(task: Task, dtype: str, device: str, batch: int) -> Workload:
    """What is run with batches of so many rows."""
    source = task.source
    return Workload(
        params=source.params,
        embedding_dim=source.embedding_dim,
        dtype=dtype,
        stored=source.stored,
        device=device,
        batch=batch,
        max_seq_len=task.max_seq_len,
        checkpoint=source.checkpoint,
        quantize=task.options.quantize,
    )


def fitting_batches(task: Task, work: Workload, ranks: int, room: Room) -> list[int]:
    """The batch sizes that there is memory for. RefusedError where not even the smallest fits."""
    shares = shares_of(work, ranks)
    found = [batch for batch in task.batches if fits(replace(work, batch=batch), shares, room)]
    if found:
        return found
    plan = plan_of(replace(work, batch=task.batches[0]), shares)
    raise RefusedError(
        f"{task.path}: a batch of {task.batches[0]} at MP {ranks} takes {_needed(plan, work.on_cpu)} in {work.dtype}, "
        f"{human(room.bytes)} are free; use more ranks on more devices, a smaller dtype, or fewer tokens"
    )


def _needed(plan: Plan, on_cpu: bool) -> str:
    if on_cpu:
        return f"{human(sum(rank.device_bytes for rank in plan.ranks))} for all ranks"
    return f"{human(plan.ranks[plan.fullest].device_bytes)} of each GPU"


def room_of(world: World) -> Room:
    """The memory that is free now: of this rank's GPU, or of all hosts as if each were this one."""
    env = world.env
    if world.device.type == "cuda":
        sharing = -(-env.local_world_size // torch.cuda.device_count())
        return Room(bytes=torch.cuda.mem_get_info(world.device)[0] // sharing, gpus=None, source="free on the GPU")
    hosts = max(1, env.world_size // env.local_world_size)
    return Room(bytes=available_host_bytes() * hosts, gpus=None, source="available on this host")


def planned_bytes(work: Workload, ranks: int) -> list[int]:
    """What each rank should hold at its most, counted as memory.py does."""
    return [_planned(rank, work) for rank in plan_of(work, shares_of(work, ranks)).ranks]


def _planned(rank: RankPlan, work: Workload) -> int:
    if not work.on_cpu:
        return rank.device_bytes - rank.reserve_bytes
    # Made-up weights stand in no file.
    host = rank.share.host
    unmapped = 0 if work.checkpoint is not None else max(0, rank.share.weights_bytes - host.copied_bytes)
    return rank.host_private_bytes + unmapped
