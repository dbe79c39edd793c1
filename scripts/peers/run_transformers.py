"""Hugging Face transformers: its own `generate`, with its usual cache or the static one, for which it compiles."""

import time
from typing import Any

import torch
import transformers
from peers.timing import Clock, Task, answer
from torch import Tensor
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM
from transformers.generation.streamers import BaseStreamer

from model.checkpoint.opening import open_checkpoint
from model.checkpoint.reading import hugging_face_rows, open_weights
from model.hugging_face.names import hugging_face_name, is_turned
from parallel.slices import Slice


class Steps(BaseStreamer):
    """Hears of each step's tokens; the prompts come first."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.tokens: list[int] = []
        self._prompts_seen = False

    def put(self, value: Tensor) -> None:
        if self._prompts_seen:
            self.tokens.append(int(value.flatten()[0]))
            self.clock.step()
        self._prompts_seen = True

    def end(self) -> None:
        pass


def main() -> None:
    task, started = Task.given(), time.perf_counter()
    torch.set_num_threads(task.threads)
    model = build(task)
    load_s = time.perf_counter() - started
    generate(model, task, task.warm_up_tokens)
    steps = generate(model, task, task.new_tokens)
    name = torch.cuda.get_device_name() if task.device == "cuda" else ""
    answer(steps.clock, load_s, steps.tokens, f"transformers {transformers.__version__}", name)


def build(task: Task) -> LlamaForCausalLM:
    sizes = task.sizes
    config = LlamaConfig(
        vocab_size=sizes["vocab_size"],
        hidden_size=sizes["dim"],
        intermediate_size=sizes["ffn_dim"],
        num_hidden_layers=sizes["n_layers"],
        num_attention_heads=sizes["n_heads"],
        num_key_value_heads=sizes["n_kv_heads"],
        rms_norm_eps=sizes["norm_eps"],
        rope_theta=sizes["rope_theta"],
        max_position_embeddings=task.prompt_tokens + task.new_tokens,
        tie_word_embeddings=False,
    )
    dtype = getattr(torch, task.dtype)
    with torch.device("meta"):
        model = LlamaForCausalLM(config).to(dtype).eval()
    model.load_state_dict(weights(task.ckpt_dir, dtype), assign=True)
    # Its table of turns is no weight: nothing has filled it.
    model.model.rotary_emb = type(model.model.rotary_emb)(config)
    return model.to(task.device)


def weights(ckpt_dir: str, dtype: torch.dtype) -> dict[str, Tensor]:
    """Every weight under Hugging Face's names, q and k in its order of rows."""
    checkpoint, state = open_checkpoint(ckpt_dir), {}
    with open_weights(checkpoint) as reader:
        for weight in checkpoint.weights:
            tensor = reader.read(weight, Slice(0, weight.length)).to(dtype)
            if is_turned(weight.name):
                tensor = hugging_face_rows(tensor, checkpoint.params.head_dim)
            state[hugging_face_name(weight.name)] = tensor
    return state


def generate(model: LlamaForCausalLM, task: Task, new_tokens: int) -> Steps:
    """Greedy decoding of exactly so many tokens."""
    how: dict[str, Any] = {"do_sample": False, "max_new_tokens": new_tokens, "min_new_tokens": new_tokens}
    if task.static_cache:
        how["cache_implementation"] = "static"
    prompts = torch.tensor(task.prompts, device=task.device)
    steps = Steps()
    with torch.inference_mode():
        model.generate(
            prompts,
            attention_mask=torch.ones_like(prompts),
            generation_config=GenerationConfig(pad_token_id=0, **how),
            streamer=steps,
        )
    return steps


if __name__ == "__main__":
    main()
