"""The Llama decoder: its files, its tokenizers and its generation, at any MP size. Starts no process.

Names are imported on first use, so that looking at a checkpoint's headers does not wait for torch.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from model.chat import Dialog, Message
    from model.generation.sampling import sample_top_p
    from model.llama import Llama
    from model.tokenizers.base import Tokenizer
    from model.tokenizers.opening import open_tokenizer

_HOMES = {
    "Dialog": "chat",
    "Llama": "llama",
    "Message": "chat",
    "Tokenizer": "tokenizers.base",
    "open_tokenizer": "tokenizers.opening",
    "sample_top_p": "generation.sampling",
}

__all__ = ["Dialog", "Llama", "Message", "Tokenizer", "open_tokenizer", "sample_top_p"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'model' has no attribute '{name}'")
    return getattr(importlib.import_module(f"model.{_HOMES[name]}"), name)
