"""A model with made-up weights, for measuring: as fast as memory can be written, and without files."""

import torch
from torch import Tensor

from model.cuts import Weight, all_weights
from model.packing import pack
from model.params import Params
from model.quantisation import format_of
from model.split import split_of
from model.transformer import Transformer
from parallel import Mesh
from parallel.kernels.formats import Quantisation
from parallel.kernels.quantised import Int4Weight, Int8Weight
from parallel.position import position

# Random numbers are drawn once and repeated. A prime: no two rows of a weight begin at the same of them.
_DRAWN = 1_000_003


def random_model(
    params: Params,
    embedding_dim: int,
    mesh: Mesh,
    dtype: torch.dtype,
    device: torch.device,
    quantize: Quantisation = "none",
) -> Transformer:
    """This rank's share of a model whose activations stay finite at any size; another model at each MP.

    Quantised weights become so one by one: a model fits that would not as a plain one. Needs no communication.
    """
    with torch.device("meta"):
        model = Transformer(params, mesh, 0 if embedding_dim == 0 else 1)
    split, every = split_of(params, mesh.size), all_weights(params, embedding_dim)
    made = _Maker(dtype, device, seed=mesh.rank)
    position.phase("making weights up", len(every), "weight")
    state: dict[str, Tensor] = {}
    for number, weight in enumerate(every, 1):
        plain = made(weight, weight.shape_of(weight.slices(split)[mesh.rank]))
        chosen = format_of(weight.name, quantize)
        if chosen == "none":
            state[weight.name] = plain
        else:
            quantised = Int4Weight.of(plain) if chosen == "int4" else Int8Weight.of(plain)
            layer = model.get_submodule(weight.name.removesuffix(".weight"))
            del layer.weight
            layer.weight = quantised
            state |= {f"{weight.name}.{name}": numbers for name, numbers in quantised.state_dict().items()}
        position.step(number)
    model.load_state_dict(state, strict=True, assign=True)
    model.requires_grad_(False)
    pack(model)
    return model.eval()


class _Maker:
    """Makes weights up: norms are 1, products keep the variance of what they are given."""

    def __init__(self, dtype: torch.dtype, device: torch.device, seed: int) -> None:
        self.dtype, self.device = dtype, device
        generator = torch.Generator().manual_seed(seed)
        self._drawn = torch.randn(_DRAWN, generator=generator).to(device)
        self._scaled: dict[int, Tensor] = {}

    def __call__(self, weight: Weight, shape: tuple[int, ...]) -> Tensor:
        """A rank's part of a weight, in this shape."""
        if len(shape) == 1:
            return torch.ones(shape, dtype=self.dtype, device=self.device)
        width = weight.shape[1]
        if width not in self._scaled:
            self._scaled[width] = (self._drawn * width**-0.5).to(self.dtype)
        numbers = self._scaled[width]
        filled = numbers.new_empty(shape)
        for part in torch.split(filled.view(-1), len(numbers)):
            part.copy_(numbers[: len(part)])
        return filled
