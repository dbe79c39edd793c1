"""What `plan` prints of time: a small table by MP size and by what carries the collectives, and what it rests on."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from launcher.checkpoints.columns import columns
from model.planning.machines import TWO_CORES, Machine, gpu_of
from model.planning.plan import Outlook, Room, Workload
from model.planning.timing import Times, decode_times, prefill_times
from model.planning.traffic import Link

_MOST_RANKS = 16
_NAMES = (0, 1, 3, 5, 7)


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One MP size over one kind of link. `link`: None where a rank is alone."""

    mp: int
    link: Link | None
    # By batch size.
    decode: dict[int, Times]
    prefill: Times


def machine_of(work: Workload, room: Room, gpu: str = "auto") -> Machine:
    """What is counted with. `gpu`: a name in machines.GPUS, or 'auto' for what its memory suggests."""
    return TWO_CORES if work.on_cpu else gpu_of(gpu, room.bytes)


def times_of(work: Workload, rows: Sequence[Outlook], machine: Machine) -> list[Row]:
    """The table's rows, for sizes of up to 16 ranks."""
    return [_row(work, row, machine, link) for row, link in _cases(rows, machine)]


def _cases(rows: Sequence[Outlook], machine: Machine) -> Iterator[tuple[Outlook, Link]]:
    for row in rows:
        if row.plan.mp == 1:
            yield row, machine.links[0]
        elif row.plan.mp <= _MOST_RANKS:
            yield from ((row, link) for link in machine.links if not link.one_host or row.plan.mp <= machine.host_ranks)


def _row(work: Workload, row: Outlook, machine: Machine, link: Link) -> Row:
    batches = sorted({1, work.batch})
    return Row(
        mp=row.plan.mp,
        link=None if row.plan.mp == 1 else link,
        decode={batch: decode_times(work, row.plan, machine, link, batch) for batch in batches},
        prefill=prefill_times(work, row.plan, machine, link),
    )


def times_text(work: Workload, rows: Sequence[Outlook], machine: Machine) -> list[str]:
    """The table for people, with its constants under it."""
    found = times_of(work, rows, machine)
    decode = [cell for batch in sorted({1, work.batch}) for cell in (f"batch {batch}", "most of it")]
    table = [("MP", "over", *decode, "prefill", "most of it"), *(tuple(_cells(row)) for row in found)]
    links = [link for link in machine.links if any(row.link == link for row in found)]
    constants: list[Machine | Link] = [machine, *links]
    return [
        f"about how fast, by MP size: tokens/s of rows of {work.max_seq_len} tokens, and a prefill of one such row",
        *columns(table, _NAMES),
        "  a model, not a measurement (docs/timing.md): the slower of reading and computing, then collectives and "
        "overhead",
        f"  {machine.checked}",
        *(f"  {line}" for each in constants for line in (each.described, f"  {each.source}")),
    ]


def _cells(row: Row) -> Iterator[str]:
    yield f"{row.mp}"
    yield row.link.name if row.link else "-"
    for batch, times in row.decode.items():
        rate = batch / times.seconds
        yield f"{rate:.0f}" if rate >= 100 else f"{rate:.3g}"
        yield times.limit
    took_s = row.prefill.seconds
    yield f"{took_s:.3g} s" if took_s >= 1 else f"{took_s * 1e3:.3g} ms"
    yield row.prefill.limit


def times_json(work: Workload, rows: Sequence[Outlook], machine: Machine) -> dict[str, object]:
    """The same numbers and more; seconds."""
    constants: list[Machine | Link] = [machine, *machine.links]
    return {
        "machine": machine.name,
        "checked": machine.checked,
        "from": [f"{each.described} ({each.source})" for each in constants],
        "rows": [
            {
                "mp": row.mp,
                "link": row.link.name if row.link else None,
                "decode": [
                    {"batch_size": batch, "tokens_per_s": batch / times.seconds, **_parts(times)}
                    for batch, times in row.decode.items()
                ],
                "prefill": {
                    "tokens": work.max_seq_len,
                    "tokens_per_s": work.max_seq_len / row.prefill.seconds,
                    **_parts(row.prefill),
                },
            }
            for row in times_of(work, rows, machine)
        ],
    }


def _parts(times: Times) -> dict[str, object]:
    return {
        "seconds": times.seconds,
        "limit": times.limit,
        "weights_s": times.weights_s,
        "kv_cache_s": times.cache_s,
        "compute_s": times.compute_s,
        "collectives_s": times.collectives_s,
        "overhead_s": times.overhead_s,
    }
