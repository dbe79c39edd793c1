"""Which keys a job file has, and what to say of one that it has not: another section's, another tool's, a slip."""

import difflib
from collections.abc import Collection, Iterable, Mapping

from launcher.settings.cluster_options import CLUSTER_SECTIONS
from launcher.settings.options import GENERATION_SECTIONS, sections_of
from launcher.settings.schema import settings_of
from parallel.errors import one_of

# What stands at the top of a file besides the sections.
PLAIN_KEYS = ("name", "command", "workdir", "env")
TOP_KEYS = (*PLAIN_KEYS, *sections_of("complete"), "cluster")
# The words of other tools for what is meant: torchrun's, Slurm's, Hugging Face's, vLLM's and llama.cpp's.
SYNONYMS: dict[str, str] = {
    **dict.fromkeys(("master_addr", "master_port", "endpoint"), "parallel.rdzv_endpoint: HOST:PORT"),
    **dict.fromkeys(("nodes", "num_nodes", "n_nodes", "num_machines", "replicas"), "parallel.nnodes: NODES"),
    **dict.fromkeys(
        ("gpus", "num_gpus", "n_gpus", "ngpus", "nproc", "num_processes", "world_size", "ntasks", "ntasks_per_node"),
        "parallel.nproc_per_node: RANKS OF EACH NODE",
    ),
    **dict.fromkeys(
        ("mp", "mp_size", "tp", "tp_size", "tensor_parallel_size", "tensor_parallel"),
        "parallel.nproc_per_node: RANKS OF EACH NODE (MP is the number of ranks)",
    ),
    **dict.fromkeys(("rank", "machine_rank"), "parallel.node_rank: NUMBER OF THE NODE"),
    **dict.fromkeys(("job_id", "rdzv_job_id", "run_id"), "parallel.rdzv_id: NAME"),
    **dict.fromkeys(("restarts", "retries", "backoff_limit"), "parallel.max_restarts: TIMES"),
    **dict.fromkeys(("dist_backend", "distributed_backend"), "parallel.backend: nccl"),
    "timeout": "parallel.timeout_s: SECONDS",
    "logs": "parallel.log_dir: FOLDER",
    **dict.fromkeys(
        (
            "model_path", "model_dir", "model_id", "model_name", "model_name_or_path", "checkpoint", "checkpoint_dir",
            "checkpoint_path", "ckpt", "ckpt_path", "weights",
        ),
        "model.ckpt_dir: FOLDER",
    ),
    **dict.fromkeys(("tokenizer", "tokenizer_file", "tokenizer_model"), "model.tokenizer_path: FILE"),
    **dict.fromkeys(("torch_dtype", "precision"), "model.dtype: bfloat16"),
    **dict.fromkeys(
        ("max_length", "max_model_len", "context_length", "ctx_size", "n_ctx", "seq_len"), "model.max_seq_len: TOKENS"
    ),
    **dict.fromkeys(("batch_size", "max_num_seqs"), "model.max_batch_size: SEQUENCES"),
    **dict.fromkeys(("max_new_tokens", "max_tokens", "n_predict", "num_tokens"), "generation.max_gen_len: TOKENS"),
    **dict.fromkeys(("prompt", "input", "inputs", "prompt_file"), "generation.prompts: [TEXT], or '@FILE'"),
    **dict.fromkeys(("messages", "dialog", "conversation"), "generation.dialogs: [[...]], or '@FILE'"),
    "temp": "generation.temperature: NUMBER",
    "do_sample": "generation.temperature: 0 to take the likeliest token",
    **dict.fromkeys(("stop_strings", "stop_sequences"), "generation.stop: [TEXT]"),
    **dict.fromkeys(("eos", "eos_token_id", "stop_token_ids"), "generation.eos_ids: [ID]"),
    **dict.fromkeys(("output_file", "out"), "generation.output: FILE"),
    **dict.fromkeys(("slurm", "sbatch"), "cluster: {kind: slurm, ...}"),
    **dict.fromkeys(("kubernetes", "k8s"), "cluster: {kind: kubernetes, ...}"),
    **dict.fromkeys(("walltime", "time_limit"), "cluster.time: 'H:MM:SS' (Slurm), or cluster.time_s (Kubernetes)"),
    "queue": "cluster.partition: NAME",
    **dict.fromkeys(("gres", "gpus_per_task"), "cluster.gpus_per_node: GPUS"),
    **dict.fromkeys(("cpus", "ncpus"), "cluster.cpus_per_task (Slurm) or cluster.cpu (Kubernetes): CORES"),
    "resources": "cluster.gpus_per_node, cluster.cpu and cluster.memory (Kubernetes)",
    "container": "cluster.image: IMAGE (Kubernetes)",
    **dict.fromkeys(("job_name", "jobname", "run_name"), "name: NAME, at the top of the file"),
    **dict.fromkeys(("chdir", "cwd", "working_dir"), "workdir: FOLDER, at the top of the file"),
    **dict.fromkeys(("environment", "envs", "env_vars"), "env: {NAME: 'text'}, at the top of the file"),
    "<<": "the keys out: merge keys are not used in job files",
}  # fmt: skip
# Longer words are nobody's slip, and comparing them takes long.
_LONGEST = 64


def advice(key: str, section: str | None, here: Mapping[str, Collection[str]]) -> str:
    """What to say of a key that `section` has not (None: the top of the file), after a semicolon.

    `here`: the keys of each section of this job, which depend on its command and kind of cluster.
    """
    word = key.lower().replace("-", "_")
    own = TOP_KEYS if section is None else here[section]
    if len(key) > _LONGEST:
        return f"; there are {', '.join(own)}"
    if word in own:
        return f"; did you mean '{word}'?"
    if homes := [name for name, keys in here.items() if word in keys] or _homes_elsewhere(word):
        return f"; it is a key of {one_of(homes)}"
    if word in TOP_KEYS:
        return f"; '{word}' stands at the top of the file, not below {section}"
    if word in SYNONYMS:
        return f"; write {SYNONYMS[word]}"
    if near := _near(word, own, 0.6):
        return f"; did you mean '{near}'?"
    paths = [f"{name}.{known}" for name, keys in here.items() for known in keys]
    if near := _near(word, {path.partition(".")[2] for path in paths}, 0.75):
        return f"; did you mean '{next(path for path in paths if path.endswith(f'.{near}'))}'?"
    return f"; there are {', '.join(own)}"


def home_of(key: str, here: Mapping[str, Collection[str]]) -> str | None:
    """The one section of this job that has the key, or one much like it, as section.key; None where there is none."""
    word = key.lower().replace("-", "_")
    found = [f"{name}.{word}" for name, keys in here.items() if word in keys]
    if not found and (near := _near(word, {known for keys in here.values() for known in keys}, 0.75)):
        found = [f"{name}.{near}" for name, keys in here.items() if near in keys]
    return found[0] if len(found) == 1 else None


def nearest_word(word: object, known: Iterable[str]) -> str:
    """'; did you mean 'x'?', or nothing."""
    near = _near(str(word), known, 0.6)
    return f"; did you mean '{near}'?" if near else ""


def _homes_elsewhere(word: str) -> list[str]:
    """The sections that would have the key with another command, or another kind of cluster."""
    commands = [command for command, kind in GENERATION_SECTIONS.items() if word in settings_of(kind)]
    kinds = [name for name, kind in CLUSTER_SECTIONS.items() if word in settings_of(kind)]
    homes = [f"generation where command is {one_of(commands)}"] if commands else []
    return homes + ([f"cluster where kind is {one_of(kinds)}"] if kinds else [])


def _near(word: str, known: Iterable[str], cutoff: float) -> str | None:
    found = difflib.get_close_matches(word, list(known), 1, cutoff) if len(word) <= _LONGEST else []
    return found[0] if found else None
