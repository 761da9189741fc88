"""A recomputation that is not carried to its end knows what it depends on."""

import pytest
import torch
from torch import nn

from memexp.backprop import Chain


def test_layers_that_have_lost_channels_are_recomputed_at_their_new_size():
    torch.manual_seed(0)
    step = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1))
    chain = Chain([step], "checkpointed")
    images = torch.randn(16, 3, 32, 32)  # large enough for the end to be left out
    for channels in (8, 8, 6, 6):
        first, last = step[0], step[2]
        first.weight, first.bias = (nn.Parameter(p.detach()[:channels].clone()) for p in (first.weight, first.bias))
        last.weight = nn.Parameter(last.weight.detach()[:channels, :channels].clone())
        last.bias = nn.Parameter(last.bias.detach()[:channels].clone())
        chain.zero_grad()
        chain(images).square().sum().backward()
        found = [p.grad for p in chain.parameters()]
        with chain.using("stored"):
            expected = torch.autograd.grad(chain(images).square().sum(), list(chain.parameters()))
        assert all(map(torch.equal, found, expected)), channels


@pytest.mark.parametrize("other", [nn.LayerNorm(64, elementwise_affine=False), nn.GELU(), nn.Softmax(-1)])
def test_a_layer_that_takes_another_ones_place_is_recomputed(other):
    """It saves what the layer before it gives, which nobody had asked for."""
    torch.manual_seed(0)
    step = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.Identity())
    chain, x = Chain([step], "checkpointed"), torch.randn(512, 64)
    for last in (nn.Identity(), nn.Identity(), other, other):
        step[3] = last
        chain.zero_grad()
        chain(x).square().sum().backward()
        found = [p.grad for p in chain.parameters()]
        with chain.using("stored"):
            expected = torch.autograd.grad(chain(x).square().sum(), list(chain.parameters()))
        assert all(map(torch.equal, found, expected))
