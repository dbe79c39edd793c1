"""A rank of shardrun: what users run, a request at a time."""

import time

import torch
from peers.timing import Clock, Task, answer

from model import Llama


def main() -> None:
    task, started = Task.given(), time.perf_counter()
    # Left out where there is nothing to ask for.
    how = {} if task.quantize == "none" else {"quantize": task.quantize}
    llama = Llama.build(
        task.ckpt_dir,
        None,
        task.prompt_tokens + task.new_tokens,
        task.batch_size,
        dtype=task.dtype,
        device=task.device,
        **how,
    )
    load_s = time.perf_counter() - started
    generate(llama, task, task.warm_up_tokens)
    clock, tokens = generate(llama, task, task.new_tokens)
    name = torch.cuda.get_device_name() if llama.world.device.type == "cuda" else ""
    answer(clock, load_s, tokens, f"torch {torch.__version__}", name)
    llama.world.close()


def generate(llama: Llama, task: Task, new_tokens: int) -> tuple[Clock, list[int]]:
    """Greedy decoding; its clock, and the tokens of the first row."""
    clock, tokens = Clock(), []
    # A step yields an event for each row.
    events = llama.start(task.prompts, new_tokens, 0.0, eos_ids=[]).events()
    for number, event in enumerate(events, 1):
        if event.row == 0 and event.token is not None:
            tokens.append(event.token)
        if number % task.batch_size == 0:
            clock.step()
    return clock, tokens


if __name__ == "__main__":
    main()
