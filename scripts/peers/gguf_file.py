"""The checkpoint as a GGUF file, for llama.cpp, with made-up tokens: only ids are used."""

from math import prod
from pathlib import Path

import gguf
import numpy as np
import torch
from peers.weights import name_of
from torch import Tensor

from model.checkpoint.checkpoint import Checkpoint
from model.checkpoint.opening import open_checkpoint
from model.checkpoint.reading import open_weights
from model.gguf.folder import gguf_name
from model.params import Params
from parallel.slices import Slice

_KINDS = {kind: gguf.GGMLQuantizationType[kind] for kind in ("F32", "F16", "BF16", "Q8_0", "Q4_0")}
_DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_BLOCK = 32
_ROWS = 512


def gguf_of(ckpt_dir: Path, kind: str, work: Path) -> Path:
    """The checkpoint as a GGUF file of this kind, in `work`; made where it is not there yet."""
    path = work / name_of(ckpt_dir) / f"{kind.lower()}.gguf"
    if not path.exists():
        print(f"writing {path}", flush=True)
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".partial")
        write_gguf(open_checkpoint(ckpt_dir), partial, kind)
        partial.rename(path)
    return path


def write_gguf(checkpoint: Checkpoint, path: Path, kind: str) -> None:
    """A tensor at a time. llama.cpp turns neighbours, as Meta does, so no row changes its place."""
    writer = gguf.GGUFWriter(str(path), "llama")
    _write_sizes(writer, checkpoint.params)
    kinds = {weight: "F32" if len(weight.shape) == 1 else kind for weight in checkpoint.weights}
    with open_weights(checkpoint) as reader:
        for weight, own in kinds.items():
            row_bytes = len(encoded(torch.zeros(weight.shape[-1]), own))
            shape = (*weight.shape[:-1], row_bytes)
            writer.add_tensor_info(gguf_name(weight.name), shape, np.dtype("uint8"), prod(shape), _KINDS[own])
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for weight, own in kinds.items():
            # In parts that the processor's caches hold.
            parts = reader.read(weight, Slice(0, weight.length)).split(_ROWS)
            writer.write_tensor_data(torch.cat([encoded(part, own) for part in parts]).numpy())
    writer.close()


def encoded(weight: Tensor, kind: str) -> Tensor:
    """The bytes of numbers [..., in] as they stand in the file [..., bytes] (ggml-common.h: block_q8_0, block_q4_0)."""
    if kind in _DTYPES:
        return weight.to(_DTYPES[kind]).contiguous().view(torch.uint8)
    blocks = weight.float().unflatten(-1, (-1, _BLOCK))
    if kind == "Q8_0":
        scales = blocks.abs().amax(-1, keepdim=True) / 127
        numbers = (blocks * _inverse(scales)).round().to(torch.int8).view(torch.uint8)
    else:
        # Of the block's largest by size, with its sign; it becomes -8.
        largest = blocks.gather(-1, blocks.abs().argmax(-1, keepdim=True))
        scales = largest / -8
        wholes = (blocks * _inverse(scales) + 8.5).clamp(0, 15).to(torch.uint8)
        numbers = wholes[..., : _BLOCK // 2] | wholes[..., _BLOCK // 2 :] << 4
    return torch.cat([scales.half().view(torch.uint8), numbers], -1).flatten(-2)


def _inverse(scales: Tensor) -> Tensor:
    return torch.where(scales == 0, 0.0, 1 / scales)


def _write_sizes(writer: gguf.GGUFWriter, params: Params) -> None:
    """What llama.cpp wants to know; the tokenizer is made up, since only ids are used."""
    writer.add_context_length(2**16)
    writer.add_block_count(params.n_layers)
    writer.add_embedding_length(params.dim)
    writer.add_feed_forward_length(params.ffn_dim)
    writer.add_head_count(params.n_heads)
    writer.add_head_count_kv(params.n_kv_heads)
    writer.add_layer_norm_rms_eps(params.norm_eps)
    writer.add_rope_dimension_count(params.head_dim)
    writer.add_rope_freq_base(params.rope_theta)
    writer.add_vocab_size(params.vocab_size)
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    pieces += [f"piece{number}" for number in range(params.vocab_size - len(pieces))]
    kinds = [2, 3, 3, *[6] * 256, *[1] * max(0, params.vocab_size - 259)]
    writer.add_tokenizer_model("llama")
    writer.add_token_list([piece.encode() for piece in pieces[: params.vocab_size]])
    writer.add_token_scores([-float(number) for number in range(params.vocab_size)])
    writer.add_token_types(kinds[: params.vocab_size])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
