"""Signals and volumes as images: networks of one and of three dimensions are narrowed, sampled, fused and recomputed alike."""

import copy

import pytest
import torch
from equality import choose, difference, parameters, randomise
from random_networks import Residual
from torch import Tensor, nn

from memexp import backprop, channels, fusing
from memexp.integral import convert


@pytest.fixture(params=[1, 3])
def case(request) -> tuple[nn.Module, Tensor]:
    """A network with residual, grouped, depthwise and transposed convolutions, and its input."""
    conv, norm, pool, mean, turned = (
        getattr(nn, f"{kind}{request.param}d")
        for kind in ("Conv", "BatchNorm", "MaxPool", "AdaptiveAvgPool", "ConvTranspose")
    )
    torch.manual_seed(0)
    inner = nn.Sequential(conv(8, 8, 3, padding=1), norm(8), nn.ReLU(), conv(8, 8, 3, padding=1, groups=2), norm(8))
    body = [conv(2, 8, 3, padding=1, bias=False), norm(8), nn.ReLU(), Residual(inner), pool(2)]
    body += [
        conv(8, 8, 3, padding=1, groups=8),
        conv(8, 12, 1),
        norm(12),
        nn.GELU(),
        conv(12, 10, 1),
        norm(10),
        nn.ReLU(),
    ]
    network = nn.Sequential(*body, turned(10, 6, 2, stride=2), nn.ReLU(), mean(1), nn.Flatten(), nn.Linear(6, 5))
    return randomise(network).double(), torch.randn(3, 2, *[8] * request.param, dtype=torch.float64)


@torch.no_grad()
def test_narrowed_is_masked(case):
    network, x = case
    graph = channels.trace(network, x)
    assert [group.size for group in graph.groups] == [2, 12, 10, 6]  # whole groups of the grouped convolution
    narrowed, error = difference(network, graph, choose(graph, 0.5), x)
    assert error < 1e-12
    assert parameters(narrowed) < parameters(network) / 2


@pytest.mark.parametrize("fold", [True, False])
def test_an_integral_network_is_the_discrete_one_at_its_size(case, fold):
    network, x = case
    integral = convert(copy.deepcopy(network), x, fold=fold).eval()
    torch.testing.assert_close(integral(x), network(x))
    assert list(integral.groups.values()) == [2, 12]  # a transposed convolution has no integral form
    integral.resize(0.6)
    discrete = integral.discretize(0.6)
    assert parameters(discrete) < parameters(network)
    torch.testing.assert_close(integral(x), discrete(x))
    integral.train()(x).square().sum().backward()
    assert all(p.grad is not None for p in integral.parameters())


@torch.no_grad()
def test_fused_is_trained(case):
    network, x = case
    fused = fusing.fuse(network, x, "all").network
    assert not any(isinstance(layer, nn.modules.batchnorm._BatchNorm) for layer in fused.modules())
    torch.testing.assert_close(fused(x), network(x))


def test_recomputed_is_stored(case):
    network, x = case
    gradients = []
    for strategy in ("stored", "light", "checkpointed"):
        made = backprop.apply(copy.deepcopy(network).train(), strategy)
        made(x).square().sum().backward()
        gradients.append([p.grad for p in made.parameters()])
    assert all(map(torch.equal, gradients[0], gradients[1]))
    assert all(map(torch.equal, gradients[0], gradients[2]))
