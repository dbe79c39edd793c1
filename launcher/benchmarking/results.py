"""What `bench` found: by batch size and by MP size, to and from one JSON object."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """A batch size at an MP size. Seconds and rates of a group of ranks are those of the slowest."""

    mp: int
    batch_size: int
    prompt_tokens: int
    new_tokens: int
    # The prefill, and choosing the token: median of the runs.
    first_token_s: float
    # Of all rows together.
    prefill_tokens_per_s: float
    prefill_share_of_peak_flops: float
    # A step makes a token in each row: median of the steps of all runs.
    decode_step_s: float
    # Of all rows together; then those of the slowest and of the fastest run.
    decode_tokens_per_s: float
    decode_tokens_per_s_lowest: float
    decode_tokens_per_s_highest: float
    # From the first token to the last: median of the runs.
    decode_s: float
    # Weights and KV cache that all ranks together read in a step in the middle.
    step_bytes: int
    decode_share_of_bandwidth: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """Of one rank: on a CPU private memory over what its libraries took, on a GPU what was allocated there."""

    rank: int
    peak_bytes: int
    planned_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """What an MP size is measured against, and what it took beside its rates."""

    mp: int
    # None: a rank alone needs none.
    backend: str | None
    # CPU threads of each rank.
    threads: int
    # The slowest rank's; bytes of files that all ranks read together, 0 where weights were made up.
    load_s: float
    load_bytes: int
    load_gb_per_s: float | None
    # The first of all runs, the measured ones not yet begun.
    first_token_after_loading_s: float
    # Of all ranks together, measured here: a matrix product in the dtype, and reading a large buffer.
    peak_flops_per_s: float
    bandwidth_bytes_per_s: float
    memory: list[Memory]
    # Batch sizes that did not fit.
    left_out: list[int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    processor: str
    cores: int
    # The GPU's name, or "cpu".
    device: str
    torch: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Bench:
    """All that was measured of one model."""

    source: str
    random_weights: bool
    notes: list[str]
    n_parameters: int
    dtype: str
    quantize: str
    date: str
    machine: Machine
    sizes: list[Size]
    results: list[Result]

    @classmethod
    def from_json(cls, text: str) -> "Bench":
        fields: dict[str, Any] = json.loads(text)
        del fields["load_s"]
        fields["machine"] = Machine(**fields["machine"])
        fields["sizes"] = [_size_of(size) for size in fields["sizes"]]
        fields["results"] = [Result(**result) for result in fields["results"]]
        return cls(**fields)

    def as_json(self) -> str:
        """One object; bytes, seconds and tokens. `load_s` is that of the first size."""
        return json.dumps({"load_s": self.sizes[0].load_s, **asdict(self)}, ensure_ascii=False) + "\n"


def _size_of(fields: dict[str, Any]) -> Size:
    return Size(**{**fields, "memory": [Memory(**memory) for memory in fields["memory"]]})


def merged(parts: Sequence[Bench]) -> Bench:
    """Several MP sizes of one model, measured one after the other."""
    first, fields = parts[0], asdict(parts[0])
    fields |= {
        "machine": first.machine,
        "sizes": [size for part in parts for size in part.sizes],
        "results": [result for part in parts for result in part.results],
    }
    return Bench(**fields)
