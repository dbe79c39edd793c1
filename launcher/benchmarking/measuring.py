"""What the ranks of one MP size measure together. Every rank runs this, and comes to the same results."""

import json
import logging
import time
from collections.abc import Sequence
from dataclasses import asdict
from math import prod

import torch

from launcher.benchmarking.gathering import gather_numbers, synchronise
from launcher.benchmarking.limits import Limits, best_of, measure_limits
from launcher.benchmarking.machine import describe_machine
from launcher.benchmarking.memory import PeakMemory
from launcher.benchmarking.planning import fitting_batches, planned_bytes, room_of, workload
from launcher.benchmarking.rates import prefill_flops
from launcher.benchmarking.results import Bench, Memory, Result, Size
from launcher.benchmarking.runs import BatchRuns, run_batch
from launcher.benchmarking.task import Task
from launcher.console import ProgressLine
from model.checkpoint.files import DTYPE_BYTES
from model.llama import Llama
from model.looking import Found
from model.placing import choose_dtype
from model.random_weights import random_model
from model.transformer import Transformer
from parallel import World

log = logging.getLogger("shardrun")


def measure(task: Task, world: World) -> Bench:
    """Load the model, or make it up, and run every batch. Collective."""
    source, options = task.source, task.options
    dtype, why = world.together("choosing a dtype", lambda: choose_dtype(options.dtype, source.stored, world.device))
    dtype_name = str(dtype).removeprefix("torch.")
    log.info("measuring what this machine can do in %s (%s)", dtype_name, why)
    limits = measure_limits(world, dtype)
    batches = _batches(task, world, dtype_name)
    peak = PeakMemory(world.device)
    with peak.watching():
        llama, load_s = _load(task, world, dtype, max(batches))
    runs = [run_batch(llama, options, batch, peak) for batch in batches]
    memory = _memory(task, world, dtype_name, max(batches), peak.bytes)
    limits = best_of(limits, measure_limits(world, dtype))
    return Bench(
        source=str(source.path),
        random_weights=source.checkpoint is None,
        notes=task.notes,
        n_parameters=source.params.n_parameters,
        dtype=dtype_name,
        quantize=options.quantize,
        date=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        machine=describe_machine(world.device),
        sizes=[_size(task, world, limits, load_s, memory, runs)],
        results=[_result(task, world, limits, run) for run in runs],
    )


def _batches(task: Task, world: World, dtype: str) -> list[int]:
    """The batch sizes that rank 0 has room for. Collective."""
    work = workload(task, dtype, world.device.type, 1)

    def see() -> str:
        return json.dumps(fitting_batches(task, work, world.mesh.size, room_of(world)))

    fitting: list[int] = json.loads(world.told("planning the batches", see))
    left_out = _left_out(task, fitting)
    if left_out:
        log.info("note: there is no memory for batches of %s", " and ".join(map(str, left_out)))
    return fitting


def _left_out(task: Task, measured: Sequence[int]) -> list[int]:
    return [batch for batch in task.batches if batch not in measured]


def _load(task: Task, world: World, dtype: torch.dtype, max_batch_size: int) -> tuple[Llama, float]:
    """The model, and the seconds that the slowest rank took for it. Collective."""
    synchronise(world)
    started = time.perf_counter()
    if task.source.checkpoint is None:
        llama = Llama(_made_up(task, world, dtype), None, world, task.max_seq_len, max_batch_size, seed=1)
    else:
        llama = Llama.load(
            _found(task, world.mesh.size),
            world,
            task.max_seq_len,
            max_batch_size,
            dtype=str(dtype).removeprefix("torch."),
            quantize=task.options.quantize,
            progress=ProgressLine("loading", "GB", 1e9, enabled=world.env.rank == 0),
        )
    synchronise(world)
    return llama, max(own for (own,) in gather_numbers(world, [time.perf_counter() - started]))


def _made_up(task: Task, world: World, dtype: torch.dtype) -> Transformer:
    params, quantize = task.source.params, task.options.quantize
    world.agree("the model", {"its sizes": str(params)})
    return world.together(
        "making weights up",
        lambda: random_model(params, task.source.embedding_dim, world.mesh, dtype, world.device, quantize),
    )


def _found(task: Task, ranks: int) -> Found:
    """The checkpoint as it is loaded, without a tokenizer: ids are enough."""
    checkpoint = task.source.checkpoint
    assert checkpoint is not None
    note = checkpoint.check_mp(ranks)
    return Found(checkpoint, None, (*checkpoint.notes, *([note] if note else [])))


def _memory(task: Task, world: World, dtype: str, batch: int, own_bytes: int) -> list[Memory]:
    """What each rank held at its most, beside its plan for the largest batch. Collective."""
    planned = planned_bytes(workload(task, dtype, world.device.type, batch), world.mesh.size)
    found = gather_numbers(world, [float(own_bytes)])
    return [Memory(rank=rank, peak_bytes=int(peak), planned_bytes=planned[rank]) for rank, (peak,) in enumerate(found)]


def _size(
    task: Task, world: World, limits: Limits, load_s: float, memory: list[Memory], runs: Sequence[BatchRuns]
) -> Size:
    load_bytes = _stored_bytes(task)
    return Size(
        mp=world.mesh.size,
        backend=world.placement.backend,
        threads=world.placement.threads,
        load_s=load_s,
        load_bytes=load_bytes,
        load_gb_per_s=load_bytes / load_s / 1e9 if load_bytes else None,
        first_token_after_loading_s=runs[0].first_token_s,
        peak_flops_per_s=limits.peak_flops_per_s,
        bandwidth_bytes_per_s=limits.bandwidth_bytes_per_s,
        memory=memory,
        left_out=_left_out(task, [run.batch for run in runs]),
    )


def _stored_bytes(task: Task) -> int:
    """The weights' bytes in the files; 0 where there are none."""
    checkpoint = task.source.checkpoint
    if checkpoint is None:
        return 0
    return sum(prod(weight.shape) for weight in checkpoint.weights) * DTYPE_BYTES[checkpoint.dtype]


def _result(task: Task, world: World, limits: Limits, run: BatchRuns) -> Result:
    prompt_tokens, rates = task.options.prompt_tokens, run.rates
    flops = prefill_flops(task.source.params, run.batch, prompt_tokens)
    return Result(
        mp=world.mesh.size,
        batch_size=run.batch,
        prompt_tokens=prompt_tokens,
        new_tokens=task.options.new_tokens,
        prefill_share_of_peak_flops=flops / rates.first_token_s / limits.peak_flops_per_s,
        step_bytes=run.step_bytes,
        decode_share_of_bandwidth=run.step_bytes / rates.decode_step_s / limits.bandwidth_bytes_per_s,
        **asdict(rates),
    )
