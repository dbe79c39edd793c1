"""The settings of `bench`."""

from dataclasses import dataclass
from typing import Literal

from launcher.settings.schema import setting
from parallel.kernels.formats import Quantisation


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchOptions:
    mp: list[int] | None = setting(
        "MP sizes to measure, as 1,2, each with ranks of its own (default: 1; under torchrun: its ranks)", default=None
    )
    max_batch_size: int = setting("measures batches of 1, 8 and 32 rows, up to this", default=8, low=1, high=2**16)
    prompt_tokens: int = setting("tokens of each prompt", default=128, low=1, high=2**20)
    new_tokens: int = setting("tokens to generate behind each prompt", default=64, low=2, high=2**20)
    repeats: int = setting("measured runs of each batch, behind one that is not counted", default=3, low=1, high=1000)
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = setting(
        "numbers to compute in (auto: the files', but none that the CPU computes slowly; bfloat16 without files)",
        default="auto",
    )
    quantize: Quantisation = setting(
        "bits of the weights: int8 or int4, or none to leave them as they are; dtype is that of all else",
        default="none",
    )
    vocab_size: int | None = setting(
        "vocabulary entries, where no file says (default: 32000, or 128256 for what looks like Llama 3)",
        default=None,
        low=1,
        high=2**24,
    )
    backend: Literal["auto", "nccl", "gloo"] = setting(
        "what carries collectives (auto: nccl where each rank has a GPU, else gloo)", default="auto"
    )
    device: Literal["auto", "cuda", "cpu"] = setting("auto: cuda where there is one, else cpu", default="auto")
    timeout_s: float = setting("seconds that a collective waits for a rank", default=300.0, low=1, high=86400)
    allow_legacy: bool = setting("read shards of before torch 1.6 too (they have no checksums)", default=False)
    plot: str | None = setting("PNG file for a picture of the rates", default=None)
    output: str | None = setting("file for the JSON object, instead of stdout", default=None)
    json: bool = setting("print one JSON object", default=False)
