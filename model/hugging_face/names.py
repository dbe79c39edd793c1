"""Names of weights in Meta's files and in Hugging Face's, one to one (transformers, convert_llama_weights_to_hf.py)."""

import re

_NAMES = {
    "tok_embeddings": "model.embed_tokens",
    "norm": "model.norm",
    "output": "lm_head",
}
_LAYER_NAMES = {
    "attention.wq": "self_attn.q_proj",
    "attention.wk": "self_attn.k_proj",
    "attention.wv": "self_attn.v_proj",
    "attention.wo": "self_attn.o_proj",
    "feed_forward.w1": "mlp.gate_proj",
    "feed_forward.w2": "mlp.down_proj",
    "feed_forward.w3": "mlp.up_proj",
    "attention_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
}
_LAYER = re.compile(r"layers\.(\d+)\.(.+)\.weight")


def hugging_face_name(name: str) -> str:
    """Hugging Face's name of the weight that Meta calls `name`."""
    layer = _LAYER.fullmatch(name)
    if layer is None:
        return f"{_NAMES[name.removesuffix('.weight')]}.weight"
    return f"model.layers.{layer[1]}.{_LAYER_NAMES[layer[2]]}.weight"


def is_turned(name: str) -> bool:
    """True where Hugging Face orders the rows of Meta's weight `name` otherwise: those that rotary positions turn."""
    return name.endswith((".attention.wq.weight", ".attention.wk.weight"))


def is_ignored(key: str) -> bool:
    """True for a key of Hugging Face's files that config.json tells as well: the rotary frequencies."""
    return key.endswith("rotary_emb.inv_freq")
