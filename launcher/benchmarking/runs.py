"""One batch size run again and again, as a user's batch is: how long each token took, on every rank."""

import logging
import time
from dataclasses import dataclass
from itertools import pairwise

from launcher.benchmarking.gathering import gather_numbers, synchronise
from launcher.benchmarking.memory import PeakMemory
from launcher.benchmarking.rates import Rates, rates_of
from launcher.console import ProgressLine
from launcher.settings.bench_options import BenchOptions
from model.llama import Llama

log = logging.getLogger("shardrun")


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchRuns:
    """What the runs of a batch size came to, over all ranks."""

    batch: int
    # Of the run that is not counted.
    first_token_s: float
    rates: Rates
    # Weights and KV cache that all ranks together read in a step in the middle.
    step_bytes: int


def run_batch(llama: Llama, options: BenchOptions, batch: int, peak: PeakMemory) -> BatchRuns:
    """Run once to warm up, under the eye of `peak`, then as often as was asked for. Collective."""
    world, prompt_tokens, new_tokens = llama.world, options.prompt_tokens, options.new_tokens
    log.info("MP %d, batch %d: %d + %d tokens a row", world.mesh.size, batch, prompt_tokens, new_tokens)
    with peak.watching():
        warm_up = _timed_run(llama, batch, prompt_tokens, new_tokens)
    line = ProgressLine(f"MP {world.mesh.size}, batch {batch}", "runs", enabled=world.env.rank == 0)
    times: list[float] = []
    for repeat in range(options.repeats):
        line(repeat, options.repeats)
        times += _timed_run(llama, batch, prompt_tokens, new_tokens)
    everyone = gather_numbers(world, [*times, warm_up[0], float(_step_bytes(llama, options, batch))])
    runs = [[own[first : first + new_tokens] for first in range(0, len(times), new_tokens)] for own in everyone]
    return BatchRuns(
        batch=batch,
        first_token_s=max(own[-2] for own in everyone),
        rates=rates_of(runs, batch, prompt_tokens),
        step_bytes=sum(int(own[-1]) for own in everyone),
    )


def _timed_run(llama: Llama, batch: int, prompt_tokens: int, new_tokens: int) -> list[float]:
    """Seconds up to the first token, then between each and the next. Collective."""
    vocabulary = llama.model.params.vocab_size
    prompts = [[(31 * row + 7 * place + 1) % vocabulary for place in range(prompt_tokens)] for row in range(batch)]
    generation = llama.start(prompts, new_tokens, temperature=0.0, eos_ids=[])
    # Ranks come out of the checks before a batch some milliseconds apart.
    synchronise(llama.world)
    started = time.perf_counter()
    times = [started, *(time.perf_counter() for event in generation.events() if event.row == 0)]
    assert len(times) == new_tokens + 1, "without an end token every row gets all its tokens"
    return [after - before for before, after in pairwise(times)]


def _step_bytes(llama: Llama, options: BenchOptions, batch: int) -> int:
    """What this rank reads in a step in the middle: every weight but the embedding, of which it takes a row, and the
    cache up to there."""
    weights = sum(
        parameter.nbytes for name, parameter in llama.model.named_parameters() if not name.startswith("tok_embeddings.")
    )
    return weights + llama.model.cache_bytes(batch, options.prompt_tokens + options.new_tokens // 2)
