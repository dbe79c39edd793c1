"""From the times of runs to rates, and what a prefill computes. Arithmetic only."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from model.params import Params

# Seconds up to the first token, then between each and the next.
Run = Sequence[float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Rates:
    """Of a group of ranks; tokens of all rows together."""

    first_token_s: float
    prefill_tokens_per_s: float
    decode_step_s: float
    decode_tokens_per_s: float
    decode_tokens_per_s_lowest: float
    decode_tokens_per_s_highest: float
    decode_s: float


def rates_of(runs: Sequence[Sequence[Run]], batch: int, prompt_tokens: int) -> Rates:
    """`runs[rank][repeat]`. The slowest rank counts: ranks that wait for it are as slow."""
    first_token_s = median(max(run[0] for run in repeat) for repeat in zip(*runs, strict=True))
    slowest = max(runs, key=_step_s)
    step_s = _step_s(slowest)
    steps_s = [median(run[1:]) for run in slowest]
    return Rates(
        first_token_s=first_token_s,
        prefill_tokens_per_s=batch * prompt_tokens / first_token_s,
        decode_step_s=step_s,
        decode_tokens_per_s=batch / step_s,
        decode_tokens_per_s_lowest=batch / max(steps_s),
        decode_tokens_per_s_highest=batch / min(steps_s),
        decode_s=median(sum(run[1:]) for run in slowest),
    )


def _step_s(runs: Sequence[Run]) -> float:
    """The median step of all runs."""
    return median(step for run in runs for step in run[1:])


def prefill_flops(params: Params, batch: int, prompt_tokens: int) -> int:
    """Floating-point operations of a prefill that need to be done: a multiplication and an addition each.

    Products with weights and causal attention; the output layer for each row's last token only.
    """
    dim, kv_dim = params.dim, params.n_kv_heads * params.head_dim
    weights = params.n_layers * (2 * dim * dim + 2 * dim * kv_dim + 3 * dim * params.ffn_dim)
    # Each token with those up to it: its query with their keys, its scores with their values.
    pairs = prompt_tokens * (prompt_tokens + 1) // 2
    attention = params.n_layers * 2 * dim * pairs
    return 2 * batch * (weights * prompt_tokens + attention + params.vocab_size * dim)
