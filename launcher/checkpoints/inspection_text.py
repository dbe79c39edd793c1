"""The report of `inspect` as text for the eye."""

from collections.abc import Sequence
from itertools import groupby, pairwise

from model.inspection.report import (
    DeepReport,
    FileReport,
    Inspection,
    RanksReport,
    WeightReport,
)

_LAYOUTS = {"meta": "Meta's layout", "hf": "Hugging Face's layout", "gguf": "GGUF"}
_LABEL_WIDTH = 13


def inspection_text(report: Inspection) -> str:
    """About thirty lines: a table of files, one of weights, and what is to be known of the whole."""
    shards = f", MP {report.mp}" if report.layout == "meta" else ""
    lines = [
        f"{report.folder}: {_LAYOUTS[report.layout]}, {_counted(len(report.files), 'file')}{shards}",
        _line("family", report.family),
        _line("parameters", _parameters(report)),
        _line(
            "sizes",
            f"dim {report.dim}, {_counted(report.n_layers, 'layer')}, {_counted(report.n_heads, 'head')} of "
            f"{report.head_dim}, {_counted(report.n_kv_heads, 'KV head')}, feed-forward {report.ffn_dim}, "
            f"vocabulary {report.vocab_size}, norm_eps {report.norm_eps:g}",
        ),
        _line("rope", _rope(report)),
        _line("", report.rope_reason),
        _line("tied", f"{_told(report.tied)}: {report.tied_reason}{_deeper(report.tied)}"),
        _line("KV heads", _kv_heads(report)),
        *_copies(report),
        *_shards_json(report),
        _line("tokenizer", _tokenizer(report)),
        *_ranks(report.ranks),
        "",
        *_table([("files", "GB", "numbers in each"), *_file_rows(report.files)]),
        "",
        *_table([("weights", "", "shape", "cut", "in each file", "dtype"), *map(_weight_row, report.weights)]),
    ]
    if report.layout == "gguf":
        bits = 8 * sum(file.size_bytes for file in report.files) / report.stored_parameters
        lines.append(
            f"numbers are decoded as they are read, to the dtypes above; the file has {bits:.3g} bits for each"
        )
    if any(weight.turned for weight in report.weights):
        lines.append("rows of q_proj and k_proj stand in Hugging Face's rotary order")
    if report.ignored:
        lines.append(f"not used: {', '.join(report.ignored)} (can be computed)")
    lines += ["", *_deep(report.deep), *(f"note: {note}" for note in report.notes)]
    return "\n".join(lines) + "\n"


def _line(label: str, text: str) -> str:
    return f"{label:<{_LABEL_WIDTH}}{text}"


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"


def _told(answer: bool | None) -> str:
    return {True: "yes", False: "no", None: "not told by headers"}[answer]


def _deeper(answer: bool | None) -> str:
    return "; --deep tells" if answer is None else ""


def _parameters(report: Inspection) -> str:
    distinct = _count_of(report.parameters)
    if report.stored_parameters == report.parameters:
        return distinct
    reasons = ["the tied output"] if report.tied and report.stored_parameters > report.parameters else []
    reasons += ["copies of KV heads"] if report.kv_copies[1] > 1 else []
    return f"{distinct}; {_count_of(report.stored_parameters)} stored, with {' and '.join(reasons)}"


def _count_of(numbers: int) -> str:
    if numbers < 1e5:
        return str(numbers)
    words = f"{numbers / 1e9:.3f} billion" if numbers >= 1e8 else f"{numbers / 1e6:.3f} million"
    return f"{words} ({numbers})"


def _rope(report: Inspection) -> str:
    scaling = report.rope_scaling
    if scaling is None:
        return f"base {report.rope_theta:g}, not scaled"
    return (
        f"base {report.rope_theta:g}, frequencies scaled by {scaling.factor:g} (low {scaling.low_freq_factor:g}, "
        f"high {scaling.high_freq_factor:g}, old context {scaling.old_context_tokens})"
    )


def _kv_heads(report: Inspection) -> str:
    least, most = report.kv_copies
    if least == most:
        return "each stored once" if most == 1 else f"each stored {most} times"
    return f"stored {least} to {most} times"


def _copies(report: Inspection) -> list[str]:
    if report.copies is None:
        return []
    answer = "equal in all (CRC-32)" if report.copies.equal else f"not told by headers whether equal{_deeper(None)}"
    return [_line("norms", f"{_counted(report.copies.tensors, 'tensor')} whole in every shard, {answer}")]


def _shards_json(report: Inspection) -> list[str]:
    if report.shards_json is None or (report.mp == 1 and report.shards_json == "absent"):
        return []
    says = {"agrees": "agrees with the shards", "absent": "absent: which shard is whose cannot be checked"}
    return [_line("shards.json", says[report.shards_json])]


def _tokenizer(report: Inspection) -> str:
    found = report.tokenizer
    if found is None:
        return "none in the folder or its parent" if report.layout != "gguf" else "none beside the file"
    if found.matches:
        return f"{found.path}: {found.kind}, {found.pieces} pieces, matches the embedding"
    return f"does not fit: {found.problem}"


def _ranks(ranks: RanksReport) -> list[str]:
    kinds = {"evenly": ranks.even, "with KV heads on several ranks": ranks.repeated, "unevenly": ranks.uneven}
    found = [f"{how} at {condensed(counts)}" for how, counts in kinds.items() if counts]
    return [_line("runs at MP", "; ".join(found))]


def condensed(counts: Sequence[int]) -> str:
    """'1, 2, 5-9' of rising numbers."""
    breaks = [index for index, (one, other) in enumerate(pairwise(counts), 1) if other != one + 1]
    runs = [counts[start:stop] for start, stop in pairwise([0, *breaks, len(counts)])]
    # Two neighbours are no range.
    words = [f"{run[0]}-{run[-1]}" if len(run) > 2 else ", ".join(map(str, run)) for run in runs]
    return ", ".join(words)


def _file_rows(files: Sequence[FileReport]) -> list[tuple[str, ...]]:
    """A row for each run of files that hold as much as each other."""
    rows: list[tuple[str, ...]] = []
    for (size_bytes, numbers), alike in groupby(files, lambda file: (file.size_bytes, file.numbers)):
        run = list(alike)
        name = run[0].name if len(run) == 1 else f"{run[0].name} to {run[-1].name}"
        each = f"{'' if len(run) == 1 else f'{len(run)} x '}{size_bytes / 1e9:.4g}"
        rows.append((name, each, ", ".join(f"{count} {dtype}" for dtype, count in numbers.items())))
    return rows


def _weight_row(weight: WeightReport) -> tuple[str, ...]:
    times = f"{weight.count} x" if weight.count > 1 else ""
    cut = "whole" if weight.cut is None else f"dim {weight.cut}"
    return weight.name, times, _shape(weight.shape), cut, _part(weight), ", ".join(weight.dtypes)


def _part(weight: WeightReport) -> str:
    """The shape of what a shard holds; a range where they hold more and less."""
    sizes = [sorted({part[place] for part in weight.parts}) for place in range(len(weight.shape))]
    return _shape([f"{found[0]}..{found[-1]}" if len(found) > 1 else found[0] for found in sizes])


def _shape(shape: Sequence[object]) -> str:
    return f"[{', '.join(map(str, shape))}]"


def _table(rows: Sequence[tuple[str, ...]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def _deep(deep: DeepReport | None) -> list[str]:
    if deep is None:
        return ["headers only: --deep reads every number, and tells what is damaged or not finite"]
    checksums = "every CRC-32 is right" if deep.checksums else "the files have no checksums of their own"
    lines = [
        _line("read", f"{deep.read_bytes / 1e9:.4g} GB: every number is finite, {checksums}"),
        _line("content", f"{deep.content_sha256} (SHA-256 of the uncut weights, however they are cut)"),
        *(
            _line("SHA-256" if not index else "", f"{deep.sha256[name]}  {name}")
            for index, name in enumerate(deep.sha256)
        ),
    ]
    if deep.checklist is not None:
        odd = [f"{entry.file} is {entry.found}" for entry in deep.checklist if entry.found != "equal"]
        equal = len(deep.checklist) - len(odd)
        found = [f"{equal} of {len(deep.checklist)} have the listed MD5", *odd]
        lines.append(_line("checklist", "; ".join(found)))
    return lines
