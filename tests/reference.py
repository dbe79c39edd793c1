"""A plain Llama in one process: the one truth that tests compare with.

Shares no code with `model/`. Written from the papers' formulas, with no cache, no cuts and no shortcuts:
Llama 2 (arXiv:2307.09288), RMSNorm (arXiv:1910.07467), RoPE (arXiv:2104.09864), SwiGLU (arXiv:2002.05202),
grouped queries (arXiv:2305.13245), the stretched rotary frequencies of Llama 3.1 (arXiv:2407.21783).

Shapes: T tokens, D width, N heads, H numbers a head, V vocabulary.
"""

import json
import math
import re
from pathlib import Path

import torch
from torch import Tensor

# Where the files 00..N-1 are put together; a name that is not here is whole in each of them.
CUT_DIM = {"wq": 0, "wk": 0, "wv": 0, "wo": 1, "w1": 0, "w2": 1, "w3": 0, "output": 0}


def merged_weights(folder: Path, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """The uncut weights of a folder in Meta's layout, in `dtype`."""
    paths = sorted(folder.glob("consolidated.*.pth"), key=lambda path: int(path.name.split(".")[1]))
    shards = [torch.load(path, map_location="cpu", weights_only=True) for path in paths]
    dim = json.loads((folder / "params.json").read_text())["dim"]
    merged = {}
    for name in shards[0]:
        parts = [shard[name].to(dtype) for shard in shards]
        cut = CUT_DIM.get(name.split(".")[-2])
        if name == "tok_embeddings.weight":
            cut = 0 if parts[0].shape[1] == dim else 1
        merged[name] = parts[0] if cut is None else torch.cat(parts, cut)
    return merged


class Reference:
    """The decoder of the checkpoint in `folder`, computed in `dtype`."""

    def __init__(self, folder: str | Path, dtype: torch.dtype = torch.float32) -> None:
        self.weights = merged_weights(Path(folder), dtype)
        params = json.loads((Path(folder) / "params.json").read_text())
        vocabulary, self.dim = self.weights["output.weight"].shape
        self.n_heads = params["n_heads"]
        self.n_kv_heads = params.get("n_kv_heads") or self.n_heads
        self.head_dim = self.dim // self.n_heads
        self.eps = params.get("norm_eps", 1e-5)
        self.theta = params.get("rope_theta", 500000.0 if vocabulary == 128256 else 10000.0)
        llama_32 = vocabulary == 128256 and self.dim in (2048, 3072)
        usual_factor = 32 if llama_32 else 8
        self.stretch = params.get("rope_scaling_factor", usual_factor) if params.get("use_scaled_rope") else 1
        self.n_layers = 1 + max(int(n) for n in re.findall(r"layers\.(\d+)\.", " ".join(self.weights)))

    def logits(self, tokens: list[int]) -> Tensor:
        """The logits behind each token, [T, V]."""
        x_TD = self.weights["tok_embeddings.weight"][tokens]
        for layer in range(self.n_layers):
            x_TD = x_TD + self._attend(self._norm(x_TD, f"layers.{layer}.attention_norm"), layer)
            x_TD = x_TD + self._feed(self._norm(x_TD, f"layers.{layer}.ffn_norm"), layer)
        return self._times(self._norm(x_TD, "norm"), "output")

    def _times(self, x: Tensor, name: str) -> Tensor:
        return x @ self.weights[f"{name}.weight"].T

    def _norm(self, x_TD: Tensor, name: str) -> Tensor:
        mean_square_T1 = (x_TD * x_TD).mean(-1, keepdim=True)
        return x_TD / torch.sqrt(mean_square_T1 + self.eps) * self.weights[f"{name}.weight"]

    def _feed(self, x_TD: Tensor, layer: int) -> Tensor:
        gate, up = (self._times(x_TD, f"layers.{layer}.feed_forward.{name}") for name in ("w1", "w3"))
        return self._times(gate * torch.sigmoid(gate) * up, f"layers.{layer}.feed_forward.w2")

    def _attend(self, x_TD: Tensor, layer: int) -> Tensor:
        length, name = len(x_TD), f"layers.{layer}.attention"
        q_TNH = self._turn(self._times(x_TD, f"{name}.wq").view(length, self.n_heads, -1))
        k_TNH = self._turn(self._times(x_TD, f"{name}.wk").view(length, self.n_kv_heads, -1))
        v_TNH = self._times(x_TD, f"{name}.wv").view(length, self.n_kv_heads, -1)
        future_TT = torch.ones(length, length, dtype=torch.bool).triu(1)
        heads = []
        for head in range(self.n_heads):
            # Query heads stand in n_kv_heads groups, each with a key and a value head.
            kv_head = head // (self.n_heads // self.n_kv_heads)
            scores_TT = q_TNH[:, head] @ k_TNH[:, kv_head].T / math.sqrt(self.head_dim)
            shares_TT = torch.softmax(scores_TT.masked_fill(future_TT, -math.inf), -1)
            heads.append(shares_TT @ v_TNH[:, kv_head])
        return self._times(torch.cat(heads, -1), f"{name}.wo")

    def _turn(self, x_TNH: Tensor) -> Tensor:
        """Each pair of neighbours (2i, 2i+1) turned by position * frequency i."""
        speeds = torch.tensor([self._frequency(i) for i in range(self.head_dim // 2)], dtype=torch.float64)
        angles = torch.outer(torch.arange(len(x_TNH), dtype=torch.float64), speeds).unsqueeze(1)
        cos, sin = angles.cos().to(x_TNH.dtype), angles.sin().to(x_TNH.dtype)
        even, odd = x_TNH[..., 0::2], x_TNH[..., 1::2]
        return torch.stack([even * cos - odd * sin, even * sin + odd * cos], -1).flatten(-2)

    def _frequency(self, pair: int) -> float:
        """Radians a token. Stretched: turns of more than 8192 tokens are slowed, those under 2048 are not."""
        frequency = float(self.theta) ** (-2 * pair / self.head_dim)
        turns_in_old_context = 8192 * frequency / (2 * math.pi)
        kept = min(max((turns_in_old_context - 1) / (4 - 1), 0.0), 1.0)
        return frequency * (kept + (1 - kept) / self.stretch)


def greedy(model: Reference, prompt: list[int], new_tokens: int, stop_ids: tuple[int, ...] = ()) -> list[int]:
    """The likeliest continuation, token by token; ends before one of `stop_ids`."""
    tokens = list(prompt)
    for _ in range(new_tokens):
        token = int(model.logits(tokens)[-1].argmax())
        if token in stop_ids:
            break
        tokens.append(token)
    return tokens[len(prompt) :]


def logprobs(model: Reference, tokens: list[int]) -> list[float]:
    """The natural logarithm of the probability of each token but the first, given those before it."""
    known = torch.log_softmax(model.logits(tokens).double(), -1)
    return [float(known[place, token]) for place, token in enumerate(tokens[1:])]
