"""gpt-fast from a folder with its files: its own `generate`, with its decoding step compiled on a GPU.

Its modules are called `model` and `generate`, so nothing of this repository but peers.timing is imported here.
"""

import inspect
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from peers.timing import Clock, Task, answer
from torch import Tensor


def main() -> None:
    task, started = Task.given(), time.perf_counter()
    sys.path.insert(0, task.engine_path)
    import generate as engine  # gpt-fast's, from the folder that was given

    import model as networks  # the same

    net = build(networks, task)
    load_s = time.perf_counter() - started
    if task.device == "cuda":
        # As its command line does with --compile.
        engine.decode_one_token = torch.compile(engine.decode_one_token, mode="reduce-overhead", fullgraph=True)
    generate(engine, net, task)
    clock, tokens = generate(engine, net, task)
    name = torch.cuda.get_device_name() if task.device == "cuda" else ""
    answer(clock, load_s, tokens, f"gpt-fast, torch {torch.__version__}", name)


def build(networks: ModuleType, task: Task) -> Any:
    sizes = task.sizes
    arguments = networks.ModelArgs(
        block_size=task.prompt_tokens + task.new_tokens + 8,
        vocab_size=sizes["vocab_size"],
        n_layer=sizes["n_layers"],
        n_head=sizes["n_heads"],
        n_local_heads=sizes["n_kv_heads"],
        dim=sizes["dim"],
        intermediate_size=sizes["ffn_dim"],
        rope_base=sizes["rope_theta"],
        norm_eps=sizes["norm_eps"],
    )
    with torch.device("meta"):
        net = networks.Transformer(arguments)
    weights = torch.load(Path(task.ckpt_dir) / "consolidated.00.pth", mmap=True, weights_only=True)
    weights.pop("rope.freqs", None)
    net.load_state_dict(weights, assign=True)
    return net.to(device=task.device, dtype=getattr(torch, task.dtype)).eval()


def generate(engine: ModuleType, net: Any, task: Task) -> tuple[Clock, list[int]]:
    """Its own loop; the clock stops where a token has come to the host, as for one who streams."""
    tokens: list[int] = []
    # It repeats one prompt for all rows.
    prompt = torch.tensor(task.prompts[0], device=task.device, dtype=torch.int)
    rows = "batch_size" in inspect.signature(engine.generate).parameters
    assert rows or task.batch_size == 1, "this version of gpt-fast has no batches"
    how = {"batch_size": task.batch_size} if rows else {}
    clock, prefill = Clock(), engine.prefill

    def heard(token: Tensor) -> None:
        tokens.append(int(token.flatten()[0]))
        clock.step()

    def timed_prefill(*arguments: Any, **settings: Any) -> Tensor:
        token: Tensor = prefill(*arguments, **settings)
        heard(token)
        return token

    engine.prefill = timed_prefill
    how |= {"interactive": False, "draft_model": None, "callback": heard, "temperature": 0.0}
    engine.generate(net, prompt, task.new_tokens, **how)
    engine.prefill = prefill
    return clock, tokens


if __name__ == "__main__":
    main()
