"""The `plan` command: from a checkpoint's headers, or params.json alone, to what a run would take."""

import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from launcher.checkpoints.plan_report import Report, as_json, as_text
from launcher.checkpoints.plan_source import Source, read_source
from launcher.console import print_result
from launcher.settings.flags import convert_flags
from launcher.settings.options import PlanOptions
from launcher.settings.schema import settings_of
from model.host import available_host_bytes, name_dtype
from model.params import Params
from model.planning.plan import Room, Workload, fits, outlook, shares_of
from model.split import check_ranks, split_of
from parallel.environment import Environment
from parallel.errors import RefusedError

_MEMORY = re.compile(r"(\d{1,9}(?:\.\d{1,9})?) ?(GB|GiB|MB|MiB|)")
_UNITS = {"": 10**9, "GB": 10**9, "GiB": 2**30, "MB": 10**6, "MiB": 2**20}
# Published models have at most 128 heads.
_MOST_LISTED = 256
# A host without any of these has no GPU that torch could use, and need not wait for torch to say so.
_GPU_FILES = ("nvidia[0-9]*", "dxg", "nvhost*", "nvmap", "kfd")


def plan_command(
    words: Sequence[str], flags: Mapping[str, str], env: Environment, _arguments: Sequence[str] = ()
) -> int:
    """Run `plan CKPT_DIR|params.json`; the exit code."""
    if len(words) != 1:
        raise RefusedError(f"plan wants one checkpoint folder or params.json, and was given {len(words)}")
    options = PlanOptions(**convert_flags("plan", settings_of(PlanOptions), flags))
    if env.world_size > 1:
        raise RefusedError("plan runs in one process; start it without torchrun")
    source = read_source(Path(words[0]), options)
    if options.mp is not None:
        check_ranks(source.params, options.mp)
    report = make_report(source, options)
    print_result(as_json(report) if options.json else as_text(report))
    return 0


def make_report(source: Source, options: PlanOptions) -> Report:
    """Everything that is printed."""
    device, room = _room(options)
    dtype, why = name_dtype(options.dtype, source.stored, device)
    work = Workload(
        params=source.params,
        embedding_dim=source.embedding_dim,
        dtype=dtype,
        stored=source.stored,
        device=device,
        batch=options.max_batch_size,
        max_seq_len=options.max_seq_len,
        checkpoint=source.checkpoint,
        quantize=options.quantize,
    )
    # The table is of files that are cut for each size.
    cut = replace(work, checkpoint=None)
    sizes = possible_sizes(source.params)
    fitting = [mp for mp in sizes if fits(cut, shares_of(cut, mp), room)]
    mp = options.mp or source.shards or next((mp for mp in fitting if _usual(source.params, mp)), 1)
    shown = {mp, *(size for size in sizes if options.all or _usual(source.params, size))}
    return Report(
        source=source,
        work=work,
        why_dtype=why,
        room=room,
        chosen=outlook(work, mp, room),
        rows=[outlook(cut, size, room) for size in sorted(shown)],
        fitting=fitting,
    )


def possible_sizes(params: Params) -> list[int]:
    """Every MP that the model can be cut for, up to what is listed."""
    return list(range(1, min(params.n_heads, params.ffn_dim, params.vocab_size, _MOST_LISTED) + 1))


def _usual(params: Params, mp: int) -> bool:
    """Even, or a power of two."""
    return split_of(params, mp).even or mp & (mp - 1) == 0


def _room(options: PlanOptions) -> tuple[str, Room]:
    """The device to plan for, and the memory there is."""
    if options.gpu_memory is not None:
        if options.device == "cpu":
            raise RefusedError("--gpu_memory and --device cpu contradict each other; leave one of them out")
        nbytes = parse_memory(options.gpu_memory)
        return "cuda", Room(bytes=nbytes, gpus=None, source=f"--gpu_memory {options.gpu_memory}")
    free = [] if options.device == "cpu" else _free_gpu_bytes()
    if free:
        return "cuda", Room(bytes=min(free), gpus=len(free), source=f"free on each of {len(free)} GPUs here")
    if options.device == "cuda":
        raise RefusedError("--device cuda: there is no GPU here; say how much memory one has, as --gpu_memory 80")
    return "cpu", Room(bytes=available_host_bytes(), gpus=None, source="available on this host")


def parse_memory(text: str) -> int:
    """Bytes of '80', '80GB', '80GiB', '500MB'; a number alone is of 1e9 bytes. RefusedError for anything else."""
    match = _MEMORY.fullmatch(text.strip())
    nbytes = int(float(match[1]) * _UNITS[match[2]]) if match else 0
    if nbytes < 1:
        raise RefusedError(f"--gpu_memory is {text!r}; wanted a number of GB above 0, as 80, 80GB or 80GiB")
    return nbytes


def _free_gpu_bytes() -> list[int]:
    """Free memory of each GPU that torch sees."""
    if sys.platform == "linux" and not any(next(Path("/dev").glob(name), None) for name in _GPU_FILES):
        return []
    import torch  # only where there may be a GPU

    return [torch.cuda.mem_get_info(index)[0] for index in range(torch.cuda.device_count())]
