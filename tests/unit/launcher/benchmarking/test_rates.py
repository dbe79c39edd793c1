"""From times to rates, and the operations of a prefill counted another way."""

import json
from pathlib import Path

import pytest

from launcher.benchmarking.rates import prefill_flops, rates_of
from model.checkpoint.params_json import read_params
from tests.checkpoints import TINY, whole_weights


def test_rates_are_of_the_slowest_rank_and_of_the_median_step() -> None:
    quick = [[0.5, 0.01, 0.01, 0.01], [0.5, 0.01, 0.01, 0.01]]
    # Its median steps: 0.02 and 0.04, and 0.03 of both runs together.
    slow = [[0.4, 0.02, 0.02, 0.9], [0.8, 0.04, 0.04, 0.04]]
    found = rates_of([quick, slow], batch=3, prompt_tokens=10)
    # The slower rank of each run, and then the median of the runs.
    assert found.first_token_s == pytest.approx((0.5 + 0.8) / 2)
    assert found.prefill_tokens_per_s == pytest.approx(3 * 10 / 0.65)
    assert found.decode_step_s == pytest.approx(0.04)
    assert found.decode_tokens_per_s == pytest.approx(3 / 0.04)
    assert (found.decode_tokens_per_s_lowest, found.decode_tokens_per_s_highest) == pytest.approx((3 / 0.04, 3 / 0.02))
    assert found.decode_s == pytest.approx((0.94 + 0.12) / 2)


@pytest.mark.parametrize(("batch", "tokens"), [(1, 1), (3, 5)])
def test_operations_of_a_prefill_are_those_of_its_products_one_by_one(batch: int, tokens: int, tmp_path: Path) -> None:
    (tmp_path / "params.json").write_text(json.dumps({**TINY.params(), "vocab_size": TINY.vocabulary}))
    matrices = {name: weight for name, weight in whole_weights(TINY).items() if weight.ndim == 2}
    output = matrices.pop("output.weight").numel()
    del matrices["tok_embeddings.weight"]
    counted = 0
    for place in range(tokens):
        counted += 2 * sum(weight.numel() for weight in matrices.values())
        # A score and a weighted value for each token up to this one, in each head of each layer.
        counted += TINY.n_layers * TINY.n_heads * (place + 1) * (2 * TINY.head_dim + 2 * TINY.head_dim)
    params = read_params(tmp_path / "params.json")
    assert prefill_flops(params, batch, tokens) == batch * (counted + 2 * output)
