"""Two trained models in the exact mode: the same logits to the bit at every MP that divides them; recorded texts."""

import pytest
import torch

from model.checkpoint.opening import open_checkpoint
from model.exact.blocks import exact_sizes
from model.tokenizers.opening import open_tokenizer
from tests.distributed.same_at_any_mp import require_same_at_all, wordy_prompts
from tests.golden.conftest import MODELS, cases_of, reference_of

SIZES = {"stories260K": (1, 2, 4), "stories15M": (1, 2)}
NEW_TOKENS = 24
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)


@DTYPES
@pytest.mark.parametrize("name", SIZES)
def test_logits_are_the_same_on_any_number_of_ranks_that_divides_the_model(name: str, dtype: torch.dtype) -> None:
    checkpoint, cases = open_checkpoint(MODELS / name), cases_of(name)
    assert exact_sizes(checkpoint.params) == SIZES[name]
    prompts = [case.prompt_tokens for case in cases]
    assert len({len(prompt) for prompt in prompts}) > 1
    found = require_same_at_all(SIZES[name][1:], checkpoint, dtype, prompts, NEW_TOKENS)
    if dtype == torch.float32:
        # The last step's logits are those of the token behind.
        assert found.decode.argmax(-1)[:, :-1].tolist() == [case.tokens[1:NEW_TOKENS] for case in cases]
        wanted = reference_of(name).logits(prompts[0])
        # Float32 sums in another order, over six layers, relative to the largest logit.
        close = 1e-5 * float(wanted.abs().max())
        torch.testing.assert_close(found.prefill[0, : len(prompts[0])], wanted, rtol=0, atol=close)


@pytest.mark.drill
@DTYPES
@pytest.mark.parametrize("name", SIZES)
def test_fifty_prompts_of_200_tokens_have_the_same_logits_on_any_number_of_ranks(name: str, dtype: torch.dtype) -> None:
    checkpoint, tokenizer = open_checkpoint(MODELS / name), open_tokenizer(MODELS / name / "tokenizer.model")
    prompts = wordy_prompts(tokenizer, 50, 200)
    assert {len(prompt) for prompt in prompts} == {200}
    for start, stop in ((0, 1), (1, 3), (3, 6), (6, 10), (10, 20), (20, 30), (30, 40), (40, 50)):
        require_same_at_all(SIZES[name][1:], checkpoint, dtype, prompts[start:stop], 8)
