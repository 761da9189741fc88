"""A difference that rounding alone explains is none of the fusing; any other is refused."""

import pytest
import torch
from torch import nn

from memexp.fusing import FusingError, check, fuse


def cancelling() -> tuple[nn.Module, torch.Tensor]:
    """The mean that BN takes away is a thousand times what it leaves."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 3)).eval()
    images = torch.rand(4, 3, 12, 12)
    with torch.no_grad():
        network[0].bias.fill_(1000.0)
        seen = network[0](images)
        network[1].running_mean.copy_(seen.mean((0, 2, 3)))
        network[1].running_var.copy_(seen.var((0, 2, 3)))
    return network, images


def test_what_rounds_anyway_may_be_fused():
    network, images = cancelling()
    fused = fuse(network, images)
    assert fused.error > 1e-5
    exact, reference = fused.network.double()(images.double()), network.double()(images.double())
    assert (exact - reference).abs().max() < 3e-4 * reference.abs().max()


def test_more_than_that_is_refused():
    network, images = cancelling()
    other = fuse(network, images).network
    with torch.no_grad():
        other[0].weight.mul_(1.01)
    with pytest.raises(FusingError, match="differ from the network's by"):
        check(network, other, [images])


class Spectrum(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.fft.rfft2(self.inner(x))


def test_complex_outputs_are_compared_in_both_parts():
    torch.manual_seed(0)
    network = Spectrum(nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8))).eval()
    images = torch.rand(4, 3, 12, 12)
    other = fuse(network, images)
    assert 0 < other.error < 1e-5
    other.network.inner[0].bias.data[0] += 1  # the real part of one frequency
    network.register_forward_hook(lambda module, inputs, out: out * 1j)
    other.network.register_forward_hook(lambda module, inputs, out: out * 1j)
    with pytest.raises(FusingError, match="differ from the network's by"):
        check(network, other.network, [images])
