"""What would have fitted, said to somebody whose run went out of memory: the plan's figures in a sentence."""

from pathlib import Path

from launcher.amounts import human
from launcher.checkpoints.plan_report import Report
from launcher.checkpoints.plan_source import read_source
from launcher.checkpoints.planning import make_report
from launcher.settings.options import PlanOptions, RunOptions


def memory_advice(options: RunOptions, ranks: int) -> str:
    """'plan: a rank of 2 takes 14.2 GB ...'; '' where the plan cannot be made either."""
    model = options.model
    asked = PlanOptions(
        mp=ranks,
        dtype=model.dtype,
        max_seq_len=model.max_seq_len,
        max_batch_size=model.max_batch_size,
        device=options.parallel.device,
        allow_legacy=model.allow_legacy,
    )
    try:
        return _words(make_report(read_source(Path(model.ckpt_dir), asked), asked), ranks)
    except Exception:  # a second failure must not hide the first
        return ""


def _words(report: Report, ranks: int) -> str:
    chosen = report.chosen.plan
    fullest = chosen.ranks[chosen.fullest]
    where = "GPU" if report.room.gpus is not None else "host"
    fitting = [mp for mp in report.fitting if mp != ranks][:3]
    fits = f"MP {' or '.join(map(str, fitting))} fits here" if fitting else "no other MP fits here"
    return (
        f"plan: at MP {ranks} a rank takes {human(fullest.device_bytes)} (weights "
        f"{human(fullest.share.weights_bytes)}, KV cache {human(fullest.cache_bytes)}) of {human(report.room.bytes)} "
        f"({where}: {report.room.source}); {fits}"
    )
