"""Weights that hooks make carry the graph of the last forward, with which torch copies no network."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import prune, spectral_norm, weight_norm

from memexp import fusing, integral
from memexp.channels.hooked import duplicate


def masked(layer: nn.Module) -> nn.Module:
    return prune.l1_unstructured(layer, "weight", 0.3)


@pytest.fixture(params=[masked, weight_norm, spectral_norm])
def trained(request) -> tuple[nn.Module, Tensor, Tensor]:
    """A network that was just called for training, an input and the loss, whose backward is still to come."""
    torch.manual_seed(0)
    x = torch.randn(4, 3, 8, 8)
    layers = [request.param(nn.Conv2d(3, 8, 3)), nn.BatchNorm2d(8), nn.ReLU(), request.param(nn.Conv2d(8, 8, 3))]
    network = nn.Sequential(*layers, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10))
    loss = network(x).square().sum()
    return network.eval(), x, loss


def test_a_copy_computes_the_same_and_the_backward_can_still_be_taken(trained):
    network, x, loss = trained
    same = duplicate(network)
    with torch.no_grad():
        assert torch.equal(same(x), network(x))
    loss.backward()
    assert all(p.grad is not None and p.grad.any() for p in network.parameters() if p.requires_grad)


def test_such_a_network_is_fused(trained):
    network, x, _ = trained
    fused = fusing.fuse(network, x)
    with torch.no_grad():
        torch.testing.assert_close(fused.network(x), network(x))


def test_what_cannot_be_continuous_is_told_by_its_name(trained):
    network, x, _ = trained
    with pytest.raises(ValueError, match=r"no group of channels can be made continuous: \d"):
        integral.convert(network, x)
