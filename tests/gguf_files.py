"""Tiny GGUF files, written with the package gguf as llama.cpp's converter writes them.

No code of the three packages is used here: names, order of rows and keys were read off llama.cpp's
convert_hf_to_gguf.py, and a test of logits holds them.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import sentencepiece
import torch
from gguf import GGMLQuantizationType as Kind
from torch import Tensor
from transformers import LlamaForCausalLM
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

_PARTS = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.down_proj": "ffn_down",
    "mlp.up_proj": "ffn_up",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
}
# Called with the writer before it writes: to add what a file holds besides, or to change it.
Change = Callable[[gguf.GGUFWriter], None]


def save_gguf(
    path: Path,
    model: LlamaForCausalLM,
    kind: Kind = Kind.F32,
    change: Change = lambda _: None,
    tensors: Mapping[str, np.ndarray] = {},
    without: str = "",
    split: int = 0,
) -> Path:
    """Write a model of transformers'. Matrices as `kind` (F16 where their rows are not whole blocks), norms as F32.

    `tensors`: in place of the model's own, or besides. `without`: a tensor that is left out. `split`: tensors a part.
    """
    config = model.config
    writer = gguf.GGUFWriter(path, "llama", split_max_tensors=split)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_rope_dimension_count(config.hidden_size // config.num_attention_heads)
    writer.add_vocab_size(config.vocab_size)
    change(writer)
    stored = {**tensors_of(model), **tensors}
    stored.pop(without, None)
    for name, tensor in stored.items():
        chosen = kind_for(tensor, kind)
        writer.add_tensor(name, encode(tensor, chosen), raw_dtype=chosen)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def tensors_of(model: LlamaForCausalLM) -> dict[str, np.ndarray]:
    """A model's weights under GGUF's names, in float32; with the divisors of the rotary frequencies."""
    config = model.config
    found = {}
    for key, tensor in model.state_dict().items():
        if key == "lm_head.weight" and config.tie_word_embeddings:
            continue
        layer, name = "", key.removesuffix(".weight")
        if name.startswith("model.layers."):
            _, _, number, name = name.split(".", 3)
            layer = f"blk.{number}."
        part = _PARTS[name]
        if part in ("attn_q", "attn_k"):
            heads = config.num_attention_heads if part == "attn_q" else config.num_key_value_heads
            tensor = tensor.reshape(heads, 2, -1, tensor.shape[1]).swapaxes(1, 2).reshape(tensor.shape)
        found[f"{layer}{part}.weight"] = tensor.float().numpy()
    if config.rope_parameters["rope_type"] == "llama3":
        found["rope_freqs.weight"] = divisors(model).numpy()
    return found


def divisors(model: LlamaForCausalLM) -> Tensor:
    """By how much transformers divides each rotary frequency of a Llama 3.1."""
    config = model.config
    width = config.hidden_size // config.num_attention_heads
    plain = config.rope_parameters["rope_theta"] ** (-torch.arange(0, width, 2, dtype=torch.float64) / width)
    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](config, torch.device("cpu"))
    return (plain / scaled.double()).float()


def kind_for(tensor: np.ndarray, kind: Kind) -> Kind:
    if tensor.ndim == 1:
        return Kind.F32
    return kind if tensor.shape[-1] % gguf.GGML_QUANT_SIZES[kind][0] == 0 else Kind.F16


def encode(tensor: np.ndarray, kind: Kind) -> np.ndarray:
    """The blocks of a tensor; random ones, where the package can only decode the kind."""
    try:
        return gguf.quantize(np.ascontiguousarray(tensor), kind)
    except NotImplementedError:
        numbers, _ = gguf.GGML_QUANT_SIZES[kind]
        return random_blocks(kind, tensor.size // numbers).reshape(tensor.shape[0], -1)


def random_blocks(kind: Kind, count: int, seed: int = 3) -> np.ndarray:
    """Blocks [count, bytes] of a kind that decode to numbers of the size of weights; the same again after 61."""
    generator = np.random.default_rng(seed)
    found = np.zeros((0, gguf.GGML_QUANT_SIZES[kind][1]), np.uint8)
    while len(found) < 61:
        blocks = generator.integers(0, 256, (512, found.shape[1]), np.uint8)
        with np.errstate(all="ignore"):
            largest = np.abs(gguf.dequantize(blocks, kind)).max(1)
        found = np.concatenate([found, blocks[(largest > 0.01) & (largest < 2)]])
    return np.resize(found[:61], (count, found.shape[1]))


def add_sentencepiece(writer: gguf.GGUFWriter, path: Path) -> None:
    """The vocabulary of a SentencePiece model, with its scores and kinds."""
    model = sentencepiece.SentencePieceProcessor(model_file=str(path))
    tests: list[tuple[Callable[[int], bool], int]] = [
        (model.is_unknown, 2),
        (model.is_control, 3),
        (model.is_unused, 5),
        (model.is_byte, 6),
    ]
    tokens = range(model.vocab_size())
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list([model.id_to_piece(token) for token in tokens])
    writer.add_token_scores([model.get_score(token) for token in tokens])
    writer.add_token_types([next((kind for test, kind in tests if test(token)), 1) for token in tokens])
    writer.add_bos_token_id(model.bos_id())
    writer.add_eos_token_id(model.eos_id())
    writer.add_unk_token_id(model.unk_id())


def add_byte_pairs(writer: gguf.GGUFWriter, content: Mapping[str, Any], pre: str = "llama-bpe") -> None:
    """The vocabulary of a tokenizer.json of Llama 3."""
    words = content["model"]["vocab"]
    added = {token["id"]: token for token in content["added_tokens"]}
    by_id = {number: word for word, number in words.items()} | {
        number: token["content"] for number, token in added.items()
    }
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list([by_id[number] for number in range(len(by_id))])
    writer.add_token_types([(3 if added[n]["special"] else 4) if n in added else 1 for n in range(len(by_id))])
    writer.add_token_merges([" ".join(pair) for pair in content["model"]["merges"]])
    names = {token["content"]: number for number, token in added.items()}
    writer.add_bos_token_id(names["<|begin_of_text|>"])
    writer.add_eos_token_id(names.get("<|eot_id|>", names["<|end_of_text|>"]))
