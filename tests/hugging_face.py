"""Tiny folders as transformers writes them, and their weights in Meta's layout.

No code of the three packages is used here: the names and the order of rows were read off transformers'
modeling_llama.py, and a test of logits holds them.
"""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.utils.logging import disable_progress_bar

disable_progress_bar()

TINY: dict[str, Any] = {
    "vocab_size": 40,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 16384,
    "rms_norm_eps": 1e-5,
}
STRETCHED = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
KINDS: dict[str, dict[str, Any]] = {
    "llama 2": {},
    "grouped queries": {"num_key_value_heads": 2},
    "tied": {"tie_word_embeddings": True, "num_key_value_heads": 1},
    "llama 3.2": {"tie_word_embeddings": True, "num_key_value_heads": 2, "rope_parameters": STRETCHED},
}
_PARTS = {
    "self_attn.q_proj": "attention.wq",
    "self_attn.k_proj": "attention.wk",
    "self_attn.v_proj": "attention.wv",
    "self_attn.o_proj": "attention.wo",
    "mlp.gate_proj": "feed_forward.w1",
    "mlp.down_proj": "feed_forward.w2",
    "mlp.up_proj": "feed_forward.w3",
    "input_layernorm": "attention_norm",
    "post_attention_layernorm": "ffn_norm",
    "model.embed_tokens": "tok_embeddings",
    "model.norm": "norm",
    "lm_head": "output",
}


def save_llama(
    folder: Path, dtype: torch.dtype = torch.float32, max_shard_size: str = "1GB", **changes: Any
) -> LlamaForCausalLM:
    """A random model of TINY's sizes with `changes`, saved by transformers. Norms are not all one."""
    torch.manual_seed(1)
    model = LlamaForCausalLM(LlamaConfig(**{**TINY, **changes}))
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.copy_(torch.randn(weight.shape) * 0.3 + ("norm" in name))
    model = model.to(dtype).eval()
    model.save_pretrained(folder, max_shard_size=max_shard_size)
    return model


def stored_tensors(folder: Path) -> dict[str, Tensor]:
    """Everything that the safetensors files of a folder hold, read by the safetensors library."""
    found: dict[str, Tensor] = {}
    for path in sorted(folder.glob("*.safetensors")):
        # load_file maps the file, and tests write over it.
        found |= {name: tensor.clone() for name, tensor in load_file(path).items()}
    return found


def meta_weights(state: dict[str, Tensor], heads: int, kv_heads: int) -> dict[str, Tensor]:
    """A state of transformers' under Meta's names: in wq and wk, number i of a head's second half behind number i of
    its first."""
    found = {}
    for key, tensor in state.items():
        layer, name = "", key.removesuffix(".weight")
        if name.startswith("model.layers."):
            _, _, number, name = name.split(".", 3)
            layer = f"layers.{number}."
        part = _PARTS[name]
        if part in ("attention.wq", "attention.wk"):
            count = heads if part == "attention.wq" else kv_heads
            halves = tensor.view(count, 2, -1, tensor.shape[1])
            tensor = torch.stack([halves[:, 0], halves[:, 1]], 2).reshape(tensor.shape)
        found[f"{layer}{part}.weight"] = tensor
    return found


def edit_config(folder: Path, **changes: object) -> None:
    """Change keys of config.json; a change to `...` takes the key out."""
    path = folder / "config.json"
    content = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({key: value for key, value in content.items() if value is not ...}))


def same_bits(one: Tensor, other: Tensor) -> bool:
    whole = {4: torch.int32, 2: torch.int16}[one.element_size()]
    return one.dtype == other.dtype and one.shape == other.shape and torch.equal(one.view(whole), other.view(whole))
