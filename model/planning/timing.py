"""About how long a step of decoding and a prefill take, at any MP, from sizes alone. Arithmetic only; no torch.

A pass reads this rank's weights and its KV cache once, computes meanwhile, and then waits for its collectives:

    seconds = max((weights + cache) / memory, operations / compute) + collectives + overhead

`machines.py` says how fast memory and compute are, `traffic.py` what the collectives take. The slowest rank counts.
docs/timing.md says where it was compared with measurements.
"""

from dataclasses import dataclass

from model.planning.machines import Machine
from model.planning.plan import Plan, RankPlan, Workload
from model.planning.traffic import Link, traffic_of
from model.planning.workspace import Widths


@dataclass(frozen=True, slots=True, kw_only=True)
class Times:
    """Seconds of one pass on the slowest rank, by what takes them."""

    weights_s: float
    cache_s: float
    compute_s: float
    collectives_s: float
    overhead_s: float

    @property
    def seconds(self) -> float:
        return max(self.weights_s + self.cache_s, self.compute_s) + self.collectives_s + self.overhead_s

    @property
    def limit(self) -> str:
        """What takes most of them."""
        parts = {"collectives": self.collectives_s, "overhead": self.overhead_s}
        if self.compute_s > self.weights_s + self.cache_s:
            parts["compute"] = self.compute_s
        else:
            parts |= {"weights": self.weights_s, "KV cache": self.cache_s}
        return max(parts, key=lambda name: parts[name])


def decode_times(work: Workload, plan: Plan, machine: Machine, link: Link, batch: int) -> Times:
    """A step of decoding: a token in each of `batch` rows that hold `max_seq_len` tokens already."""
    return _slowest(work, plan, machine, link, _Pass(batch=batch, tokens=1, seen=work.max_seq_len))


def prefill_times(work: Workload, plan: Plan, machine: Machine, link: Link) -> Times:
    """A prefill of one row of `max_seq_len` tokens."""
    # A token looks at those before it: half of the row, on average.
    return _slowest(work, plan, machine, link, _Pass(batch=1, tokens=work.max_seq_len, seen=work.max_seq_len // 2))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Pass:
    """`tokens` new tokens in each of `batch` rows, each of which looks at `seen` tokens."""

    batch: int
    tokens: int
    seen: int


def _slowest(work: Workload, plan: Plan, machine: Machine, link: Link, step: _Pass) -> Times:
    traffic = traffic_of(work.params, plan.split, work.embedding_dim, step.batch, work.itemsize, step.tokens)
    sharing = plan.mp if machine.shared and link.one_host else 1
    memory = machine.memory_bytes_per_s * machine.memory_share / sharing
    compute = machine.flops(work.itemsize) * machine.flops_share / sharing
    times = [
        Times(
            weights_s=read_bytes(rank) / memory,
            cache_s=_cache_bytes(work, rank, step) / memory,
            compute_s=_operations(work, rank.share.widths, step) / compute,
            collectives_s=traffic.seconds(link),
            overhead_s=machine.overhead_s,
        )
        for rank in dict.fromkeys(plan.ranks)
    ]
    return max(times, key=lambda each: each.seconds)


def read_bytes(rank: RankPlan) -> int:
    """Weights that a pass reads: all but the embedding, of which it takes a row a token."""
    widths = rank.share.widths
    embedding = widths.vocabulary * widths.columns if widths.columns else widths.v * widths.dim
    return rank.share.weights_bytes - embedding * widths.itemsize


def _cache_bytes(work: Workload, rank: RankPlan, step: _Pass) -> int:
    """Keys and values that are read; those of a prefill are made in it."""
    if step.tokens > 1:
        return 0
    return rank.cache_bytes * step.batch * step.seen // (work.batch * work.cache_tokens)


def _operations(work: Workload, widths: Widths, step: _Pass) -> int:
    """Multiplications and additions of products with weights and of attention; logits only behind each row."""
    dim, heads, kv_heads = widths.dim, widths.n * widths.head_dim, widths.k * widths.head_dim
    layer = 2 * dim * heads + 2 * dim * kv_heads + 3 * dim * widths.f
    attention = 2 * heads * step.seen
    rows = step.batch * step.tokens
    return 2 * (work.params.n_layers * rows * (layer + attention) + step.batch * dim * widths.v)
