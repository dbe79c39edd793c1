"""Check: the checkpoint's headers, its tokenizer, and whether it fits into memory."""

from collections.abc import Iterator
from pathlib import Path

from launcher.amounts import human
from launcher.checkpoints.plan_source import Source, read_source
from launcher.checkpoints.planning import make_report
from launcher.doctor.checks import Finding, Findings, Question, bad, good, note, plural, trying
from launcher.settings.options import PlanOptions
from model.inspection.headers import inspect_checkpoint
from model.inspection.report import Inspection
from parallel.errors import RefusedError

_NO_ANSWER = "the file system does not answer: see `mount` and `dmesg`; mount it again, or copy the files elsewhere"


def look(question: Question) -> Findings:
    if question.folder is None:
        yield note("checkpoint", "none was named: `shardrun doctor CKPT_DIR` looks at one too")
        return
    folder = Path(question.folder)
    options = PlanOptions(mp=question.ranks, device=question.device)
    yield trying("checkpoint", f"reading the headers of {folder}", _NO_ANSWER)
    try:
        source = read_source(folder, options)
    except RefusedError as error:
        yield bad("checkpoint", str(error), f"`shardrun inspect {folder}` looks at it again")
        return
    if source.checkpoint is not None:
        yield from described(inspect_checkpoint(source.checkpoint), question.ranks)
    yield trying("fits", "asking for the devices' memory", "the driver hangs (see driver)")
    yield _fits(source, options)


def described(report: Inspection, ranks: int | None) -> Iterator[Finding]:
    """What it is, and what of it does not go together."""
    size = sum(file.size_bytes for file in report.files)
    shards = f" cut for MP {report.mp}" if report.layout == "meta" else ""
    yield good(
        "checkpoint",
        f"{report.family}, {human(size)} in {plural(len(report.files), 'file')}{shards}, {report.dtype}; "
        "its headers are whole",
    )
    if report.tokenizer is None:
        yield note("tokenizer", "there is none: prompts can be ids only", "put tokenizer.model into the folder")
    elif report.tokenizer.problem is not None:
        yield bad("tokenizer", f"{report.tokenizer.path}: {report.tokenizer.problem}", "download it again")
    else:
        yield good("tokenizer", f"{report.tokenizer.path}: {report.tokenizer.kind}, {report.tokenizer.pieces} pieces")
    sizes = sorted((*report.ranks.even, *report.ranks.repeated))
    if ranks is not None and ranks not in sizes:
        yield note("MP sizes", f"the model is not cut evenly for {ranks}; for {', '.join(map(str, sizes))} it is")


def _fits(source: Source, options: PlanOptions) -> Finding:
    try:
        report = make_report(source, options)
    except RefusedError as error:
        return bad("fits", str(error), "choose other --ranks or --device")
    plan, room = report.chosen.plan, report.room
    if report.work.on_cpu:
        needed = f"{human(sum(rank.device_bytes for rank in plan.ranks))} for all"
    else:
        needed = f"{human(plan.ranks[plan.fullest].device_bytes)} each"
    ranks = f"{plural(plan.mp, 'rank')} on {report.work.device} in {report.work.dtype}"
    found = f"{ranks} take {needed}, of {human(room.bytes)} {room.source}"
    if report.chosen.fits:
        return good("fits", found)
    others = ", ".join(map(str, report.fitting[:8]))
    remedy = f"MP sizes that fit: {others}" if others else "no MP size fits here: `shardrun plan` says what would"
    return bad("fits", found, remedy)
