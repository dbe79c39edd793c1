"""Decode speed and memory of each rank, beside the same model run by Hugging Face transformers.

    .venv/bin/python scripts/bench_decode.py --ckpt_dir DIR [--ckpt_dir_mp2 DIR] [--repeats 3] [--new_tokens 200]

Every measurement is a process of its own with the same threads and dtype; engines take turns, so that a
slow minute of the machine meets them all. Rates are of decoding alone: the time of N tokens less that of
one, best of three in each process, median over repeats. Memory is RssAnon of /proc/self/status, sampled
every 10 ms, less that of a process that only imports torch. Needs the `test` extra (transformers).
"""

import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fire

_CORES = len(os.sched_getaffinity(0))
_PROMPT_TOKENS = 16


class MemoryPeak:
    """The highest RssAnon of this process since it was made, in bytes."""

    def __init__(self) -> None:
        self.bytes = 0
        threading.Thread(target=self._watch, daemon=True).start()

    def _watch(self) -> None:
        while True:
            status = Path("/proc/self/status").read_text(encoding="ascii")
            found = re.search(r"RssAnon:\s+(\d+) kB", status)
            self.bytes = max(self.bytes, int(found[1]) * 1024 if found else 0)
            time.sleep(0.01)


def decode_rate(generate: Callable[[int], object], new_tokens: int) -> float:
    """Tokens a second of decoding, without the prefill."""

    def seconds(tokens: int) -> float:
        started = time.perf_counter()
        generate(tokens)
        return time.perf_counter() - started

    generate(new_tokens)
    return max((new_tokens - 1) / (seconds(new_tokens) - seconds(1)) for _ in range(3))


def run_shardrun(ckpt_dir: str, new_tokens: int) -> dict[str, Any]:
    peak = MemoryPeak()
    from model import Llama

    started = time.perf_counter()
    llama = Llama.build(ckpt_dir, None, _PROMPT_TOKENS + new_tokens, 1, dtype="float32", device="cpu")
    load_s = time.perf_counter() - started
    prompt = list(range(1, _PROMPT_TOKENS + 1))
    rate = decode_rate(lambda tokens: list(llama.start([prompt], tokens, 0.0, eos_ids=[]).events()), new_tokens)
    result = {"rate": rate, "load_s": load_s, "peak_bytes": peak.bytes, "share_bytes": _held_bytes(llama)}
    llama.world.close()
    return result


def _held_bytes(llama: Any) -> int:
    """This rank's weights and KV cache."""

    model = llama.model
    weights = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    return int(weights + model.cache_bytes(1, llama.max_seq_len + 1))


def run_transformers(ckpt_dir: str, new_tokens: int) -> dict[str, Any]:
    peak = MemoryPeak()
    import torch
    from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

    from model.checkpoint.opening import open_checkpoint

    torch.set_num_threads(_CORES)
    params = open_checkpoint(ckpt_dir).params
    config = LlamaConfig(
        vocab_size=params.vocab_size,
        hidden_size=params.dim,
        intermediate_size=params.ffn_dim,
        num_hidden_layers=params.n_layers,
        num_attention_heads=params.n_heads,
        num_key_value_heads=params.n_kv_heads,
        rms_norm_eps=params.norm_eps,
        rope_theta=params.rope_theta,
        max_position_embeddings=2048,
        tie_word_embeddings=False,
    )
    started = time.perf_counter()
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    model = model.to_empty(device="cpu").float().eval()
    model.load_state_dict(transformers_state(ckpt_dir))
    model.model.rotary_emb.__init__(config)  # its buffers are no weights: to_empty left them unset
    load_s = time.perf_counter() - started
    prompt = torch.arange(1, _PROMPT_TOKENS + 1).unsqueeze(0)

    def generate(tokens: int) -> Any:
        greedy = GenerationConfig(do_sample=False, max_new_tokens=tokens, min_new_tokens=tokens, pad_token_id=0)
        with torch.inference_mode():
            return model.generate(prompt, attention_mask=torch.ones_like(prompt), generation_config=greedy)

    return {"rate": decode_rate(generate, new_tokens), "load_s": load_s, "peak_bytes": peak.bytes}


def transformers_state(ckpt_dir: str) -> dict[str, Any]:
    """The weights under Hugging Face's names, q and k in its order of rows."""
    from model.checkpoint.opening import open_checkpoint
    from model.checkpoint.reading import hugging_face_rows, open_weights
    from model.hugging_face.names import hugging_face_name, is_turned
    from parallel.slices import Slice

    checkpoint, state = open_checkpoint(ckpt_dir), {}
    with open_weights(checkpoint) as reader:
        for weight in checkpoint.weights:
            tensor = reader.read(weight, Slice(0, weight.length)).float()
            turned = is_turned(weight.name)
            state[hugging_face_name(weight.name)] = (
                hugging_face_rows(tensor, checkpoint.params.head_dim) if turned else tensor
            )
    return state


def run_baseline(_ckpt_dir: str, _new_tokens: int) -> dict[str, Any]:
    peak = MemoryPeak()
    import torch

    assert torch.ones(1).sum() == 1
    time.sleep(0.1)
    return {"peak_bytes": peak.bytes}


_ENGINES = {"shardrun": run_shardrun, "transformers": run_transformers, "baseline": run_baseline}


def start_processes(engine: str, ckpt_dir: str, new_tokens: int, ranks: int = 1) -> list[dict[str, Any]]:
    """Run one measurement; the result of each rank."""
    root = Path(__file__).resolve().parent.parent
    with tempfile.TemporaryDirectory() as folder:
        processes = []
        for rank in range(ranks):
            environ = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": str(_CORES // ranks)}
            if ranks > 1:
                place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": ranks, "LOCAL_WORLD_SIZE": ranks}
                environ |= {name: str(value) for name, value in place.items()}
                environ |= {"SHARDRUN_RENDEZVOUS_FILE": f"{folder}/store", "GLOO_SOCKET_IFNAME": "lo"}
            command = [sys.executable, __file__, "worker", engine, ckpt_dir, str(new_tokens)]
            processes.append(subprocess.Popen(command, env=environ, stdout=subprocess.PIPE, text=True))
        return [json.loads(process.communicate(timeout=600)[0].splitlines()[-1]) for process in processes]


def worker(engine: str, ckpt_dir: str, new_tokens: int) -> None:
    print(json.dumps(_ENGINES[engine](str(ckpt_dir), new_tokens)))


def bench(ckpt_dir: str, ckpt_dir_mp2: str = "", repeats: int = 3, new_tokens: int = 200) -> None:
    """Measure and print a table."""
    kinds = [("shardrun, 1 process", "shardrun", ckpt_dir, 1), ("transformers", "transformers", ckpt_dir, 1)]
    if ckpt_dir_mp2:
        kinds.insert(1, ("shardrun, 2 ranks", "shardrun", ckpt_dir_mp2, 2))
    baseline = start_processes("baseline", ckpt_dir, new_tokens)[0]["peak_bytes"]
    found: dict[str, list[list[dict[str, Any]]]] = {kind[0]: [] for kind in kinds}
    for _ in range(repeats):
        for name, engine, folder, ranks in kinds:
            found[name].append(start_processes(engine, folder, new_tokens, ranks))
    rates = {name: [min(rank["rate"] for rank in run) for run in runs] for name, runs in found.items()}
    print(f"{ckpt_dir}: float32, {_CORES} cores, {_PROMPT_TOKENS} + {new_tokens} tokens, {repeats} repeats")
    for name, runs in found.items():
        peaks = [max(run[rank]["peak_bytes"] for run in runs) - baseline for rank in range(len(runs[0]))]
        held = [rank.get("share_bytes") for rank in runs[0]]
        ratio = statistics.median(a / b for a, b in zip(rates[name], rates["transformers"], strict=True))
        low, high = min(rates[name]), max(rates[name])
        print(
            f"{name:20} {statistics.median(rates[name]):8.1f} tokens/s ({low:.1f} to {high:.1f}), "
            f"{ratio:.2f} of transformers"
        )
        for rank, (peak, own) in enumerate(zip(peaks, held, strict=True)):
            share = "" if own is None else f" (its weights and KV cache: {own / 1e6:.0f} MB)"
            print(f"{'':20} rank {rank}: peak private memory {peak / 1e6:.0f} MB{share}")


if __name__ == "__main__":
    fire.Fire({"worker": worker}) if sys.argv[1:2] == ["worker"] else fire.Fire(bench)
