"""What `plan` prints: a report for people, or one JSON object."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from launcher.amounts import human
from launcher.checkpoints.columns import columns
from launcher.checkpoints.plan_source import Source
from launcher.checkpoints.plan_times import machine_of, times_json, times_text
from model.planning.plan import MAX_BATCH, MAX_SEQ_LEN, Outlook, Plan, RankPlan, Room, Workload
from model.planning.traffic import Link, Traffic
from model.split import Split

# What model/placing.py answers where the system does not say how much memory it has.
_UNKNOWN_BYTES = 2**62


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """All that is printed. `fitting`: every MP size that fits, `rows`: those that are listed, `gpu`: see machine_of."""

    source: Source
    work: Workload
    why_dtype: str
    room: Room
    chosen: Outlook
    rows: list[Outlook]
    fitting: list[int]
    gpu: str = "auto"


def as_text(report: Report) -> str:
    """The report for people."""
    plan = report.chosen.plan
    lines = [*_heading(report), "", *_ranks(report, plan), "", *_host(report, plan)]
    if plan.mp > 1:
        lines += ["", *_collectives(plan, report.work.link)]
    lines += ["", *_fit(report), "", *_table(report)]
    lines += ["", *times_text(report.work, report.rows, machine_of(report.work, report.room, report.gpu))]
    return "\n".join(lines) + "\n"


def describe_cut(split: Split) -> str:
    """How evenly the model is cut, in words."""
    cut = "even" if split.even else "uneven"
    held = sum(own.size for own in split.kv_heads)
    if held == split.kv_heads[-1].stop:
        return cut
    return f"{cut}, KV x{split.kv_copies}" if split.kv_copies else f"{cut}, KV repeated"


def _heading(report: Report) -> list[str]:
    work, params = report.work, report.work.params
    token = 2 * params.n_layers * params.n_kv_heads * params.head_dim * work.itemsize
    weights = "" if work.quantize == "none" else f", weights in {work.quantize}"
    lines = [
        f"{report.source.path}: {params.n_parameters / 1e9:.4g} billion parameters",
        f"  dim {params.dim}, {params.n_layers} layers, {params.n_heads} heads, {params.n_kv_heads} KV heads, "
        f"feed-forward {params.ffn_dim}, vocabulary {params.vocab_size}; KV cache {token / 1024:.4g} KiB a token",
        f"MP {report.chosen.plan.mp} on {work.device} in {work.dtype} ({report.why_dtype}){weights}, batches of "
        f"{work.batch} x {work.max_seq_len} tokens",
    ]
    if report.source.assumed:
        lines += ["assumed or noted", *(f"  - {each}" for each in report.source.assumed)]
    return lines


def _ranks(report: Report, plan: Plan) -> list[str]:
    where = "process on the CPU" if report.work.on_cpu else "GPU"
    head = ("", "heads", "KV heads", "weights", "KV cache", "workspace", "reserve", "total")
    rows = []
    for first, last, rank in _groups(plan):
        name = f"rank {first}" if first == last else f"ranks {first}-{last}"
        full = " (fullest)" if first == plan.fullest and last < plan.mp - 1 else ""
        heads, kv_heads, *memory = _sizes(rank)
        rows.append((f"{name}{full}", str(heads), str(kv_heads), *map(human, memory)))
    fullest = plan.ranks[plan.fullest]
    reserve = "code and buffers of the libraries" if report.work.on_cpu else "CUDA, NCCL, cuBLAS; assumed"
    return [
        f"memory of each {where}",
        *columns([head, *rows]),
        f"  workspace: {human(fullest.prefill_bytes)} in a prefill of {report.work.batch} x {report.work.max_seq_len} "
        f"tokens, {human(fullest.decode_bytes)} in decoding; reserve: {reserve}",
    ]


def _groups(plan: Plan) -> Iterator[tuple[int, int, RankPlan]]:
    """Runs of ranks that take the same: first, last and what each takes."""
    first = 0
    for rank in range(1, plan.mp + 1):
        if rank == plan.mp or _sizes(plan.ranks[rank]) != _sizes(plan.ranks[first]):
            yield first, rank - 1, plan.ranks[first]
            first = rank


def _sizes(rank: RankPlan) -> tuple[int, ...]:
    """The numbers that are shown of a rank."""
    memory = (rank.share.weights_bytes, rank.cache_bytes, rank.workspace_bytes, rank.reserve_bytes, rank.device_bytes)
    return (rank.share.widths.n, rank.share.widths.k, *memory)


def _host(report: Report, plan: Plan) -> list[str]:
    rank = max(plan.ranks, key=lambda each: each.host_peak_bytes)
    host = rank.share.host
    lines = [
        f"host memory of a process, peak over its libraries: {human(rank.host_peak_bytes)}",
        f"  {human(rank.host_private_bytes)} private at most; mapped files (shared by processes, the system can drop "
        f"them): {human(host.kept_bytes)} kept, {human(host.passing_bytes)} only while loading",
    ]
    if report.work.on_cpu:
        copied, weights = human(host.copied_bytes), human(rank.share.weights_bytes)
        lines.append(
            f"  {copied} of {weights} of weights are copied; the others are used where they stand in the files"
        )
    return lines


def _collectives(plan: Plan, link: Link) -> list[str]:
    kinds = ", ".join(f"{each.count} {each.kind} ({each.what})" for each in plan.single.collectives)
    steps = [plan.single] if plan.traffic.batch == 1 else [plan.single, plan.traffic]
    return [
        f"collectives a token: {kinds}",
        *(f"  batch {traffic.batch}: {_described(traffic, link)}" for traffic in steps),
        f"  from: {link.described}",
        f"    {link.source}",
    ]


def _described(traffic: Traffic, link: Link) -> str:
    return (
        f"{traffic.count} collectives, {human(traffic.payload_bytes)} ({human(traffic.sent_bytes)} sent by each rank), "
        f"about {traffic.seconds(link) * 1e3:.3g} ms"
    )


def _fit(report: Report) -> list[str]:
    room, work, chosen = report.room, report.work, report.chosen
    total = sum(rank.device_bytes for rank in chosen.plan.ranks)
    if work.on_cpu:
        has = "an unknown amount" if room.bytes >= _UNKNOWN_BYTES else human(room.bytes)
        needs, there = f"{human(total)} for all ranks", f"{has} {room.source}"
    else:
        gpus = f"{chosen.plan.mp} GPU{'s' if chosen.plan.mp > 1 else ''}"
        needs = f"{human(chosen.plan.ranks[chosen.plan.fullest].device_bytes)} on each of {gpus}"
        there = f"{human(room.bytes)} each ({room.source})"
    verdict = "fits" if chosen.fits else "does not fit"
    if room.gpus is not None and chosen.plan.mp > room.gpus:
        verdict = f"does not fit: {chosen.plan.mp} ranks and {room.gpus} GPUs"
    sizes = _ranges(report.fitting)
    best = max(report.rows, key=lambda row: row.largest_batch)
    closest = f"; closest is MP {best.plan.mp}, with a batch of {best.largest_batch}" if best.largest_batch else ""
    return [
        f"{verdict}: {needs}, of {there}",
        f"  largest batch with rows of {work.max_seq_len} tokens: {_limited(chosen.largest_batch, MAX_BATCH)}; most "
        f"tokens a row at batch {work.batch}: {_limited(chosen.longest_sequence, MAX_SEQ_LEN)}",
        f"  MP sizes that fit: {sizes or f'none{closest}'}",
    ]


def _table(report: Report) -> list[str]:
    where = "all ranks" if report.work.on_cpu else "each GPU"
    head = ("MP", "cut", "weights", "KV cache", "workspace", where, "fits", "max batch", "max tokens", "collectives")
    rows: list[tuple[str, ...]] = [head]
    for row in report.rows:
        plan, rank = row.plan, row.plan.ranks[row.plan.fullest]
        needed = sum(each.device_bytes for each in plan.ranks) if report.work.on_cpu else rank.device_bytes
        sizes = map(human, (rank.share.weights_bytes, rank.cache_bytes, rank.workspace_bytes, needed))
        limits = (_limited(row.largest_batch, MAX_BATCH), _limited(row.longest_sequence, MAX_SEQ_LEN))
        rows.append(
            (
                f"{plan.mp}",
                describe_cut(plan.split),
                *sizes,
                "yes" if row.fits else "no",
                *limits,
                f"{plan.single.seconds(report.work.link) * 1e3:.3g} ms" if plan.mp > 1 else "-",
            )
        )
    return [
        "by MP size (the fullest rank; files cut for it; collectives: time a token at batch 1)",
        *columns(rows, (0, 1)),
    ]


def _limited(number: int, limit: int) -> str:
    return "none" if number == 0 else f"{number}+" if number == limit else str(number)


def _ranges(numbers: Sequence[int]) -> str:
    """'1-4, 8' of [1, 2, 3, 4, 8]."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)


def as_json(report: Report) -> str:
    """One object; bytes and seconds."""
    work, chosen, params = report.work, report.chosen, report.work.params
    sizes = ("dim", "n_layers", "n_heads", "n_kv_heads", "ffn_dim", "vocab_size", "n_parameters")
    fields = {
        "source": str(report.source.path),
        "params": {name: getattr(params, name) for name in sizes},
        "device": work.device,
        "dtype": work.dtype,
        "quantize": work.quantize,
        "max_batch_size": work.batch,
        "max_seq_len": work.max_seq_len,
        "assumed": report.source.assumed,
        "room": {"bytes": report.room.bytes, "gpus": report.room.gpus, "source": report.room.source},
        **_outlook_json(chosen, work.link),
        "ranks": [_rank_json(rank, plan) for rank, plan in enumerate(chosen.plan.ranks)],
        "mp_that_fit": report.fitting,
        "mp_sizes": [_outlook_json(row, work.link) | _rank_json_of_fullest(row.plan) for row in report.rows],
        "times": times_json(work, report.rows, machine_of(work, report.room, report.gpu)),
    }
    return json.dumps(fields, ensure_ascii=False) + "\n"


def _outlook_json(row: Outlook, link: Link) -> dict[str, object]:
    return {
        "mp": row.plan.mp,
        "cut": describe_cut(row.plan.split),
        "even": row.plan.split.even,
        "fullest_rank": row.plan.fullest,
        "fits": row.fits,
        "largest_batch": row.largest_batch,
        "longest_sequence": row.longest_sequence,
        "collectives_per_token": _traffic_json(row.plan.single, link),
        "collectives_per_step": _traffic_json(row.plan.traffic, link),
    }


def _traffic_json(traffic: Traffic, link: Link) -> dict[str, object]:
    return {
        "batch": traffic.batch,
        "count": traffic.count,
        "payload_bytes": traffic.payload_bytes,
        "sent_bytes": traffic.sent_bytes,
        "seconds": traffic.seconds(link),
        "from": f"{link.described} ({link.source})",
    }


def _rank_json_of_fullest(plan: Plan) -> dict[str, object]:
    return _rank_json(plan.fullest, plan.ranks[plan.fullest])


def _rank_json(rank: int, plan: RankPlan) -> dict[str, object]:
    widths = plan.share.widths
    return {
        "rank": rank,
        "heads": widths.n,
        "kv_heads": widths.k,
        "ffn": widths.f,
        "vocabulary": widths.v,
        "weights_bytes": plan.share.weights_bytes,
        "kv_cache_bytes": plan.cache_bytes,
        "workspace_bytes": plan.workspace_bytes,
        "prefill_bytes": plan.prefill_bytes,
        "decode_bytes": plan.decode_bytes,
        "reserve_bytes": plan.reserve_bytes,
        "total_bytes": plan.device_bytes,
        "host_private_bytes": plan.host_private_bytes,
        "host_copied_weights_bytes": plan.share.host.copied_bytes,
        "host_mapped_kept_bytes": plan.share.host.kept_bytes,
        "host_mapped_while_loading_bytes": plan.share.host.passing_bytes,
        "host_peak_bytes": plan.host_peak_bytes,
    }
