"""The weights that all engines run: a checkpoint that is there, or random ones in Meta's layout, made once."""

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from model.checkpoint.params_json import read_params
from model.checkpoint.shard_writer import PlannedTensor, write_shard
from model.cuts import Weight, all_weights
from parallel.errors import RefusedError

SHAPES: dict[str, dict[str, Any]] = {
    "tinyllama-1.1b": {
        "dim": 2048,
        "n_layers": 22,
        "n_heads": 32,
        "n_kv_heads": 4,
        "multiple_of": 256,
        "ffn_dim_multiplier": 1.03125,
        "norm_eps": 1e-5,
        "vocab_size": 32000,
    },
    "llama-2-7b": {
        "dim": 4096,
        "n_layers": 32,
        "n_heads": 32,
        "multiple_of": 256,
        "norm_eps": 1e-5,
        "vocab_size": 32000,
    },
}
_USUAL_VOCABULARY = 32000
_LAYOUT = "meta"
_WEIGHTS = (".pth", ".safetensors", ".gguf", ".bin")


def checkpoint_of(model: str, work: Path) -> Path:
    """The checkpoint's folder: `model` itself, or random weights in `work` of a known name's or a file's sizes."""
    given = Path(model)
    if given.is_dir() and any(path.suffix in _WEIGHTS for path in given.iterdir()):
        return given
    name, raw = (model, SHAPES[model]) if model in SHAPES else _sizes_of(given)
    folder = work / name / _LAYOUT
    if not (folder / "consolidated.00.pth").exists():
        write_random(folder, raw)
    return folder


def name_of(ckpt_dir: Path) -> str:
    """What a checkpoint is called: those of `checkpoint_of` stand in a folder of their model's name."""
    return ckpt_dir.parent.name if ckpt_dir.name == _LAYOUT else ckpt_dir.name


def _sizes_of(given: Path) -> tuple[str, dict[str, Any]]:
    """A name for them, and what params.json says; a vocabulary that it leaves open is Llama 2's."""
    file = (given / "params.json" if given.is_dir() else given).resolve()
    if not file.is_file():
        raise RefusedError(f"{given}: wanted one of {', '.join(SHAPES)}, a params.json or a checkpoint's folder")
    raw: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    if raw.get("vocab_size", -1) < 1:
        raw["vocab_size"] = _USUAL_VOCABULARY
    return file.parent.name, raw


def write_random(folder: Path, raw: dict[str, Any]) -> None:
    """bfloat16 weights whose hidden states keep their size from layer to layer."""
    print(f"writing random weights to {folder}", flush=True)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "params.json").write_text(json.dumps(raw), encoding="utf-8")
    params = read_params(folder / "params.json")
    draw = torch.Generator().manual_seed(1)
    tensors = [
        PlannedTensor(weight.name, weight.shape, torch.bfloat16, lambda weight=weight: _random(weight, draw))
        for weight in all_weights(params, 1)
    ]
    write_shard(folder / "consolidated.00.pth", tensors)


def _random(weight: Weight, draw: torch.Generator) -> Tensor:
    if len(weight.shape) == 1:
        return torch.ones(weight.shape, dtype=torch.bfloat16)
    size = 1.0 if weight.name.startswith("tok_embeddings") else weight.shape[1] ** -0.5
    return (torch.randn(weight.shape, generator=draw) * size).to(torch.bfloat16)
