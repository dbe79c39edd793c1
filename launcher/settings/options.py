"""Every setting, in the sections that flags and job files share.

A flag of the command line is a field here; a job file groups the same fields under `model`, `parallel`
and `generation`, which differs by command. Nothing is changed after it is built.
"""

from dataclasses import dataclass
from typing import Literal

from launcher.settings.schema import setting
from parallel.kernels.formats import Quantisation


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
    quantize: Quantisation = setting(
        "bits of the weights: int8 or int4, or none to leave them as they are; dtype is that of all else",
        default="none",
    )
    allow_legacy: bool = setting("read shards of before torch 1.6 too (they have no checksums)", default=False)
    exact: bool = setting("logits the same to the bit at every MP that divides the model evenly; slower", default=False)
    check_weights: bool = setting("compare the weights in memory with what was loaded, after each batch", default=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class ParallelSection:
    nproc_per_node: int | Literal["auto", "gpu", "cpu"] | None = setting(
        "ranks to start on this host; auto: one a GPU, or one; gpu: one a GPU; cpu: one a core (default: one process; "
        "under torchrun: what torchrun started)",
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
    heartbeat_s: float = setting(
        "seconds after which a rank that others wait for, and that does nothing, is said to hang; 0: never",
        default=60.0,
        low=0,
        high=86400,
    )
    log_dir: str | None = setting(
        "folder for a log of each rank (where several are started, below the run's id)", default=None
    )
    max_restarts: int = setting(
        "times to start all ranks again after one failed; wants --output, which goes on where it was",
        default=0,
        low=0,
        high=1000,
    )
    nnodes: int = setting("hosts; the same command runs on each", default=1, low=1, high=4096)
    node_rank: int | None = setting(
        "which of the hosts this is, from 0; rdzv_backend static wants it", default=None, low=0
    )
    rdzv_backend: Literal["static", "c10d"] = setting(
        "how hosts get their numbers (static: from node_rank; c10d: the endpoint's host is 0, then by name)",
        default="static",
    )
    rdzv_endpoint: str | None = setting("HOST:PORT where host 0 listens for the others", default=None)
    rdzv_id: str | None = setting(
        "name of the run, the same on every host (default: made up, on one host)", default=None
    )
    join_timeout_s: float = setting("seconds to wait for the other hosts to come", default=30.0, low=1, high=86400)
    inject: str | None = setting(
        "a fault for a drill (kill, hang, stop, slow, raise, exit, nan or oom), as kill:rank=1,step=5", default=None
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationSection:
    """What complete, chat, infill and score have in common."""

    max_gen_len: int | None = setting("tokens to generate, at most (default: up to max_seq_len)", default=None, low=1)
    temperature: float = setting("0 takes the likeliest token", default=0.6, low=0, high=10)
    top_p: float = setting(
        "draw from the likeliest tokens of this mass; 1 keeps all", default=0.9, low=0, high=1, above=True
    )
    top_k: int = setting(
        "draw from so many of the likeliest tokens; 0 keeps all (in contrastive search: its candidates)",
        default=0,
        low=0,
        high=2**24,
    )
    min_p: float = setting(
        "draw from tokens with at least this share of the likeliest one's probability", default=0.0, low=0, high=1
    )
    repetition_penalty: float = setting(
        "above 1 makes less likely what stands there already", default=1.0, low=0.01, high=100
    )
    num_beams: int = setting("beams of a beam search; 1: none", default=1, low=1, high=2**16)
    num_return_sequences: int = setting("answers to each prompt", default=1, low=1, high=2**16)
    early_stopping: bool = setting("end a beam search when it has num_beams complete answers", default=False)
    length_penalty: float = setting(
        "beams compete by log-probability over length to this power", default=1.0, low=-10, high=10
    )
    penalty_alpha: float = setting("above 0: contrastive search, with top_k candidates", default=0.0, low=0, high=1)
    seed: int = setting("of the random numbers, the same on every rank", default=1, low=0, high=2**63 - 1)
    stop: list[str] | None = setting("JSON list of texts: an answer ends before the first of them", default=None)
    eos_ids: list[int] | None = setting("token ids that end an answer (default: the tokenizer's eos)", default=None)
    logprobs: bool = setting("also the natural logarithm of each token's probability", default=False)
    top_logprobs: int = setting("also so many of each step's likeliest tokens", default=0, low=0, high=20)
    echo: bool = setting("also the prompt: its text, and its log-probabilities", default=False)
    stream: bool = setting("print text as it comes, one prompt after the other", default=False)
    json: bool = setting("print one JSON object a line for each answer", default=False)
    output: str | None = setting("file for the answers, one JSON object a line, instead of stdout", default=None)
    resume: bool = setting("go on with an --output that was interrupted", default=False)
    bad_lines: Literal["refuse", "skip"] = setting(
        "a prompt that cannot be run is refused before the start, or reported and skipped", default="refuse"
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class CompleteSection(GenerationSection):
    prompts: list[str] = setting(
        'JSON list of texts, or @FILE.txt (one a line), or @FILE.jsonl ({"prompt": ...} a line)', file=True
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatSection(GenerationSection):
    dialogs: list[object] | None = setting(
        'JSON list of dialogs ([[{"role": "user", "content": ...}], ...]), or @FILE.json, or @FILE.jsonl (a dialog '
        "a line); default: a chat at the terminal",
        default=None,
        file=True,
    )
    system: str | None = setting("what a chat at the terminal tells the model first", default=None)


@dataclass(frozen=True, slots=True, kw_only=True)
class InfillSection(GenerationSection):
    prompts: list[str] = setting("as for complete, each with <FILL_ME> where the model is to fill in", file=True)
    suffix_first: bool = setting("show the model the suffix before the prefix", default=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreSection(GenerationSection):
    text: str = setting("the text, or @FILE")
    stride: int | None = setting(
        "tokens that the window moves on by (default: half of max_seq_len)", default=None, low=1, high=2**20
    )
    compare_plain: bool = setting(
        "with --quantize: also score with the plain weights, which are loaded first (so they must fit) and given back",
        default=True,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class RunOptions:
    """All that a command which runs the model needs. `generation` is the command's own section."""

    command: str
    model: ModelSection
    parallel: ParallelSection
    generation: GenerationSection


@dataclass(frozen=True, slots=True, kw_only=True)
class JobFileOptions:
    """What `run` takes besides a job file and overrides of it."""

    dry_run: bool = setting("print the job as it was understood, and what would be run; start nothing", default=False)


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


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifyOptions:
    mp: list[int] = setting("MP sizes to run, as 1,2,4; the others are compared with the first")
    prompts: list[str] | None = setting("as for complete (default: a few short texts)", default=None, file=True)
    tokenizer_path: str | None = setting(
        "tokenizer.model or tokenizer.json (default: in CKPT_DIR, else in its parent)", default=None
    )
    max_gen_len: int = setting("tokens to generate for each prompt, at most", default=32, low=1)
    max_seq_len: int = setting("tokens of prompt and answer together, at most", default=512, low=1, high=2**20)
    max_batch_size: int = setting("sequences held at once, at most", default=8, low=1, high=2**16)
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = setting(
        "numbers to compute in (auto: the files', but none that the CPU computes slowly)", default="auto"
    )
    quantize: Quantisation = setting(
        "bits of the weights: int8 or int4, or none to leave them as they are; dtype is that of all else",
        default="none",
    )
    exact: bool = setting("in the exact mode, where sizes must agree to the last bit", default=False)
    backend: Literal["auto", "nccl", "gloo"] = setting(
        "what carries collectives (auto: nccl where each rank has a GPU, else gloo)", default="auto"
    )
    device: Literal["auto", "cuda", "cpu"] = setting("auto: cuda where there is one, else cpu", default="auto")
    timeout_s: float = setting("seconds that a collective waits for a rank", default=300.0, low=1, high=86400)
    allow_legacy: bool = setting("read shards of before torch 1.6 too (they have no checksums)", default=False)
    json: bool = setting("print one JSON object", default=False)


GENERATION_SECTIONS: dict[str, type[GenerationSection]] = {
    "complete": CompleteSection,
    "chat": ChatSection,
    "infill": InfillSection,
    "score": ScoreSection,
}


def sections_of(command: str) -> dict[str, type]:
    """The sections of a job, or of the flags, of a command that runs the model."""
    return {"model": ModelSection, "parallel": ParallelSection, "generation": GENERATION_SECTIONS[command]}
