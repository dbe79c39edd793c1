"""Whole numbers stored as floats: every sum of them is exact, in whatever order the ranks add it up."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from parallel import Mesh
from parallel.collectives import Shares


def whole_numbers(*shape: int, seed: int = 0) -> Tensor:
    """Floats from -4 to 4 without a fraction, the same on every rank."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-4, 5, shape, generator=generator).float()


def own_part(full: Tensor, dim: int | None, mesh: Mesh, shares: Shares = None) -> Tensor:
    """This rank's part of a tensor cut along `dim`; None: the whole. `shares`: where it does not go evenly."""
    if dim is None:
        return full
    if shares is None:
        return full.chunk(mesh.size, dim)[mesh.rank].contiguous()
    return full.split([own.size for own in shares], dim)[mesh.rank].contiguous()


def require_equal(what: str, got: Tensor, wanted: Tensor) -> None:
    """Equal to the last bit, or an error that shows both."""
    if got.dtype != wanted.dtype or not torch.equal(got, wanted):
        raise AssertionError(f"{what} differs; got {got.dtype}\n{got}\nwanted {wanted.dtype}\n{wanted}")


def require_close(what: str, got: Tensor, wanted: Tensor, tolerance: float) -> None:
    """Equal within an absolute and relative `tolerance`, whose reason the caller states."""
    torch.testing.assert_close(got, wanted, rtol=tolerance, atol=tolerance, msg=lambda text: f"{what}: {text}")


def fill_with_whole_numbers(layer: nn.Module) -> None:
    with torch.no_grad():
        for seed, parameter in enumerate(layer.parameters(), start=100):
            parameter.copy_(whole_numbers(*parameter.shape, seed=seed))


def forward_and_backward(layer: nn.Module, x: Tensor, grad_y: Tensor) -> dict[str, Tensor]:
    """The output and every gradient, by name; integer inputs have none."""
    x = x.clone().requires_grad_(x.is_floating_point())
    y = layer(x)
    y.backward(grad_y)
    found = {"output": y.detach()}
    if x.grad is not None:
        found["gradient of input"] = x.grad
    for name, parameter in layer.named_parameters():
        if parameter.grad is not None:
            found[f"gradient of {name}"] = parameter.grad.to_dense()
    return found


def require_same_as_uncut(
    mesh: Mesh,
    uncut: nn.Module,
    layers: Sequence[nn.Module],
    x: Tensor,
    grad_y: Tensor,
    cuts: Mapping[str, int],
    shares: Shares = None,
) -> None:
    """Each of `layers` gives this rank's part of what `uncut` gives: output, gradients, with and without autograd.

    `cuts` says along which dimension "input", "output" or a parameter is cut; a name that is absent is whole.
    `shares`: what each rank owns there, where it does not go evenly.
    """
    fill_with_whole_numbers(uncut)

    def own(name: str, value: Tensor) -> Tensor:
        return own_part(value, cuts.get(name), mesh, shares)

    wanted = {
        name: own(name.removeprefix("gradient of "), value)
        for name, value in forward_and_backward(uncut, x, grad_y).items()
    }
    own_x, own_grad_y = own("input", x), own("output", grad_y)
    own_state = {name: own(name, value) for name, value in uncut.state_dict().items()}
    for layer in layers:
        who = type(layer).__module__
        layer.load_state_dict(own_state)
        found = forward_and_backward(layer, own_x, own_grad_y)
        assert found.keys() == wanted.keys(), f"{who}: {sorted(found)} rather than {sorted(wanted)}"
        for name in wanted:
            require_equal(f"{who}: {name}", found[name], wanted[name])
        untouched = own_x.clone()
        with torch.no_grad():
            require_equal(f"{who}: output without autograd", layer(own_x), wanted["output"])
        require_equal(f"{who}: input after the forward", own_x, untouched)
