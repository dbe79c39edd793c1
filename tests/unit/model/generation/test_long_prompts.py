"""Prompts that go through the model in parts are what they are in one piece."""

import pytest
import torch

from model.generation import settings as settings_module
from model.generation.decoder import Decoder
from model.generation.settings import Settings
from model.params import Params
from model.transformer import Transformer
from parallel import Mesh

PARAMS = Params(
    dim=48,
    n_layers=3,
    n_heads=6,
    n_kv_heads=2,
    ffn_dim=80,
    vocab_size=50,
    norm_eps=1e-5,
    rope_theta=10000.0,
    rope_scaling=None,
    rope_reason="",
)


@pytest.mark.parametrize("each", [1, 5, 16, 40])
def test_a_prefill_in_parts_is_that_in_one_piece(each: int, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(1)
    model = Transformer(PARAMS, Mesh()).requires_grad_(False)
    prompts = [[token % 50 for token in range(start, start + length)] for start, length in ((0, 37), (3, 8), (9, 22))]
    how = Settings(max_gen_len=4, max_seq_len=64)

    def run(tokens: int) -> tuple[torch.Tensor, torch.Tensor, list[list[float]], torch.Tensor]:
        monkeypatch.setattr(settings_module, "PREFILL_TOKENS", tokens * len(prompts))
        with torch.inference_mode():
            decoder = Decoder(model, prompts, how, [0, 1, 2])
            logits = decoder.prefill()
            return logits, decoder.hidden_BTD, decoder.prompt_logprobs(), decoder.advance([1, 2, 3], {0, 1, 2})

    for part, whole in zip(run(each), run(1000), strict=True):
        # Sums of float32 in another order.
        torch.testing.assert_close(part, whole, rtol=1e-5, atol=1e-5)
