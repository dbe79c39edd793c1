"""Made-up weights: finite, of a sane scale, each rank's share, quantised too."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from model.checkpoint.params_json import read_params
from model.params import Params
from model.random_weights import random_model
from parallel import Mesh
from parallel.kernels.formats import Quantisation
from tests.unit.model.conftest import MakeFolder

CPU = torch.device("cpu")


@pytest.fixture
def params(make_folder: MakeFolder) -> Params:
    folder: Path = make_folder("sizes", dim=64, vocab_size=96)
    # Deep enough that sums that grow from layer to layer would show.
    return replace(read_params(folder / "params.json"), n_layers=40)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("quantize", ["none", "int8", "int4"])
def test_logits_of_a_deep_model_are_finite_and_tell_tokens_apart(
    quantize: Quantisation, dtype: torch.dtype, params: Params
) -> None:
    model = random_model(params, 0, Mesh(), dtype, CPU, quantize)
    with torch.inference_mode():
        logits_TV = model.logits(model(torch.tensor([[1, 2, 3, 4]])))[0]
    assert logits_TV.isfinite().all()
    # Rows of unit variance times weights that keep it.
    assert 0.3 < float(logits_TV.std()) < 3
    assert len(set(logits_TV[-1].tolist())) > 80
    kinds = {parameter.dtype for name, parameter in model.named_parameters() if name.endswith("wq.weight.numbers")}
    assert kinds == {"none": set(), "int8": {torch.int8}, "int4": {torch.uint8}}[quantize]


def test_a_rank_holds_its_share_and_other_numbers_than_the_next(params: Params) -> None:
    one, two = (random_model(params, 1, Mesh(rank, 2), torch.float32, CPU) for rank in (0, 1))
    shapes = {name: tuple(weight.shape) for name, weight in one.state_dict().items()}
    assert shapes["tok_embeddings.weight"] == (96, 32)
    assert shapes["layers.0.attention.wq.weight"] == (32, 64)
    assert shapes["layers.0.attention.wo.weight"] == (64, 32)
    assert shapes["output.weight"] == (48, 64)
    assert not torch.equal(one.output.weight, two.output.weight)
