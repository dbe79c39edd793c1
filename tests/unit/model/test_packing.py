import pytest
import torch
from torch import Tensor, nn

from model.packing import groups_of, pack, pack_group
from model.params import Params
from model.transformer import Transformer
from parallel import Mesh
from parallel.kernels.adjacent import joined
from parallel.kernels.quantised import Int4Weight, Int8Weight, QuantisedWeight

PARAMS = Params(
    dim=32,
    n_layers=2,
    n_heads=4,
    n_kv_heads=2,
    ffn_dim=48,
    vocab_size=40,
    norm_eps=1e-5,
    rope_theta=1e4,
    rope_scaling=None,
    rope_reason="",
)
TOKENS = torch.tensor([[3, 1, 4, 1, 5]])


@pytest.fixture
def model() -> Transformer:
    torch.manual_seed(3)
    return Transformer(PARAMS, Mesh())


def pack_all(model: Transformer) -> None:
    for group in groups_of(model):
        pack_group(group)


def memories(tensors: list[Tensor]) -> int:
    """Bytes of all memories that these stand in."""
    return sum({tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}.values())


def test_a_packed_model_has_the_same_weights_under_the_same_names_in_as_much_memory(model: Transformer) -> None:
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    taken = memories(list(model.parameters()))
    pack_all(model)
    after = model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert memories(list(model.parameters())) == taken
    attention = model.layers[1].attention
    assert joined([attention.wq.weight, attention.wk.weight, attention.wv.weight]) is not None


def test_packing_again_moves_nothing(model: Transformer) -> None:
    pack_all(model)
    places = [weight.data_ptr() for weight in model.parameters()]
    pack_all(model)
    assert [weight.data_ptr() for weight in model.parameters()] == places


def test_a_packed_model_computes_and_learns_as_before(model: Transformer) -> None:
    def run() -> tuple[Tensor, list[Tensor]]:
        model.zero_grad()
        logits = model.logits(model(TOKENS))
        logits.square().sum().backward()
        gradients = [weight.grad.clone() for weight in model.parameters() if weight.grad is not None]
        return logits.detach(), gradients

    logits, gradients = run()
    pack_all(model)
    packed_logits, packed_gradients = run()
    assert torch.equal(packed_logits, logits)
    assert len(gradients) == len(packed_gradients) == len(list(model.parameters()))
    assert all(map(torch.equal, packed_gradients, gradients))


@pytest.mark.parametrize("kind", [Int8Weight, Int4Weight])
def test_quantised_weights_are_packed_with_their_scales(kind: type[QuantisedWeight], model: Transformer) -> None:
    group = groups_of(model)[0]
    for layer in group:
        plain: nn.Parameter = layer.weight
        del layer.weight
        layer.weight = kind.of(plain.detach())
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    pack_group(group)
    after = model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], before[name]) for name in before)
    for name in ("numbers", "scales"):
        assert joined([getattr(layer.weight, name) for layer in group]) is not None


def test_weights_of_several_kinds_stay_as_they_are(model: Transformer) -> None:
    wq, wk, wv = groups_of(model)[0]
    plain: nn.Parameter = wk.weight
    del wk.weight
    wk.weight = Int8Weight.of(plain.detach())
    places = [tensor.data_ptr() for tensor in model.parameters()]
    pack_group([wq, wk, wv])
    assert [tensor.data_ptr() for tensor in model.parameters()] == places


def test_on_a_cpu_weights_stay_where_they_were_read(model: Transformer) -> None:
    places = [weight.data_ptr() for weight in model.parameters()]
    pack(model)
    assert [weight.data_ptr() for weight in model.parameters()] == places
