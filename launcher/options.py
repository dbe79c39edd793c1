"""Every setting, in the sections that flags and job files share.

A flag of the command line is a field here; a job file groups the same fields under `model`, `parallel`
and `generation`. Nothing is changed after it is built.
"""

from dataclasses import dataclass
from typing import Literal

from launcher.schema import setting


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSection:
    ckpt_dir: str = setting("folder with params.json and consolidated.NN.pth, or a Hugging Face folder")
    tokenizer_path: str | None = setting(
        "tokenizer.model or tokenizer.json (default: in ckpt_dir, else in its parent)", default=None
    )
    max_seq_len: int = setting("tokens of prompt and answer together, at most", default=512, low=1, high=2**20)
    max_batch_size: int = setting("sequences held at once, at most", default=8, low=1, high=2**16)
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = setting(
        "numbers to compute in (auto: the files', but none that the CPU computes slowly)", default="auto"
    )
    allow_legacy: bool = setting("read shards of before torch 1.6 too (they have no checksums)", default=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class ParallelSection:
    nproc_per_node: int | None = setting(
        "ranks to start on this host (default: one process; under torchrun: what torchrun started)",
        default=None,
        low=1,
        high=1024,
    )
    model_parallel_size: int | None = setting("must be the number of ranks, where given", default=None, low=1)
    strict_mp: bool = setting(
        "refuse a number of ranks that is not the number of shards, rather than cut them anew", default=False
    )
    backend: Literal["auto", "nccl", "gloo"] = setting(
        "what carries collectives (auto: nccl where each rank has a GPU, else gloo)", default="auto"
    )
    device: Literal["auto", "cuda", "cpu"] = setting("auto: cuda where there is one, else cpu", default="auto")
    timeout_s: float = setting("seconds that a collective waits for a rank", default=300.0, low=1, high=86400)
    log_dir: str | None = setting("folder for a log of each rank", default=None)


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationSection:
    prompts: list[str] = setting(
        'JSON list of texts, or @FILE.txt (one a line), or @FILE.jsonl ({"prompt": ...} a line)'
    )
    max_gen_len: int | None = setting("tokens to generate, at most (default: up to max_seq_len)", default=None, low=1)
    temperature: float = setting("0 takes the likeliest token", default=0.6, low=0, high=10)
    top_p: float = setting(
        "draw from the likeliest tokens of this mass; 1 keeps all", default=0.9, low=0, high=1, above=True
    )
    seed: int = setting("of the random numbers, the same on every rank", default=1, low=0, high=2**63 - 1)
    eos_ids: list[int] | None = setting("token ids that end an answer (default: the tokenizer's eos)", default=None)
    logprobs: bool = setting("also the natural logarithm of each token's probability", default=False)
    echo: bool = setting("also the prompt: its text, and its log-probabilities", default=False)
    stream: bool = setting("print text as it comes, one prompt after the other", default=False)
    json: bool = setting("print one JSON object a line for each prompt", default=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class CompleteOptions:
    """All that `complete` needs."""

    model: ModelSection
    parallel: ParallelSection
    generation: GenerationSection


@dataclass(frozen=True, slots=True, kw_only=True)
class ReshardOptions:
    mp: int = setting("ranks to cut for", low=1, high=1024)
    embedding_dim: int | None = setting(
        "dimension to cut tok_embeddings along (default: as in SRC; from one file: 1, and 0 with a tiktoken tokenizer)",
        default=None,
        low=0,
        high=1,
    )
    allow_legacy: bool = setting("read shards of before torch 1.6 too (they have no checksums)", default=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class ConvertOptions:
    to: Literal["meta", "hf"] = setting(
        "layout to write: meta (params.json, consolidated.NN.pth) or hf (config.json, safetensors)"
    )
    mp: int | None = setting("ranks to cut for, with --to meta (default: 1)", default=None, low=1, high=1024)
    embedding_dim: int | None = setting(
        "dimension to cut tok_embeddings along, with --to meta (default: as reshard)", default=None, low=0, high=1
    )
    allow_legacy: bool = setting("read shards of before torch 1.6 too (they have no checksums)", default=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanOptions:
    mp: int | None = setting(
        "ranks to plan for (default: as many as there are shards, else the fewest that fit)",
        default=None,
        low=1,
        high=1024,
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = setting(
        "numbers to compute in (auto: the files', but none that the CPU computes slowly; bfloat16 without files)",
        default="auto",
    )
    vocab_size: int | None = setting(
        "vocabulary entries, where no file says (default: 32000, or 128256 for what looks like Llama 3)",
        default=None,
        low=1,
        high=2**24,
    )
    max_seq_len: int = setting("tokens of prompt and answer together, at most", default=512, low=1, high=2**20)
    max_batch_size: int = setting("sequences held at once, at most", default=8, low=1, high=2**16)
    gpu_memory: str | None = setting(
        "of each GPU: 80 or 80GB (1e9 bytes), 80GiB (2**30); as many GPUs as ranks (default: what is free here)",
        default=None,
    )
    device: Literal["auto", "cuda", "cpu"] = setting("auto: cuda where there is one, else cpu", default="auto")
    all: bool = setting("list every MP size, not only even ones and powers of two", default=False)
    allow_legacy: bool = setting("read shards of before torch 1.6 too (they have no checksums)", default=False)
    json: bool = setting("print one JSON object", default=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class InspectOptions:
    deep: bool = setting(
        "read every number: what is damaged or not finite, checksums, and a digest of the content", default=False
    )
    allow_legacy: bool = setting("read shards of before torch 1.6 too (they have no checksums)", default=False)
    json: bool = setting("print one JSON object", default=False)


COMPLETE_SECTIONS: dict[str, type] = {
    "model": ModelSection,
    "parallel": ParallelSection,
    "generation": GenerationSection,
}
