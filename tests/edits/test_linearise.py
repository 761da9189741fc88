"""A network becomes one linear layer where it is affine everywhere, not where it only looks so near the images."""

import pytest
import torch
from torch import nn

from memexp import edits, fusing

IMAGES = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
BENDS = [
    nn.ReLU(),
    nn.Hardtanh(-100, 100),
    nn.Hardtanh(-1e5, 1e5),
    nn.Softshrink(1e-3),
    nn.Threshold(-50, -50),
    nn.PReLU(8),
]


def network(*middle: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(192, 8), *middle, nn.Linear(8, 3)).eval()


@pytest.mark.parametrize("bend", BENDS, ids=str)
def test_what_bends_anywhere_stays_as_it_is(bend):
    found = fusing.fuse(network(bend), IMAGES, "all")
    far = 1e7 * IMAGES
    torch.testing.assert_close(found.network(far), network(bend)(far))
    assert not found.edits
    with pytest.raises(ValueError, match="the network is not linear"):
        edits.apply(network(bend), {"kind": "linearise", "shape": [3, 8, 8], "outputs": 3})


@pytest.mark.parametrize("straight", [nn.Dropout(), nn.PReLU(8, 1.0), nn.Linear(8, 8), nn.BatchNorm1d(8)], ids=str)
def test_what_is_affine_is_one_linear_layer(straight):
    found = fusing.fuse(network(straight), IMAGES, "all")
    assert [type(layer) for layer in found.network] == [nn.Flatten, nn.Linear]
    torch.testing.assert_close(found.network(IMAGES), network(straight)(IMAGES))


@pytest.mark.parametrize("trained", [False, True])
def test_what_is_frozen_stays_so(trained):
    found = fusing.fuse(network().requires_grad_(trained), IMAGES, "all").network
    assert [p.requires_grad for p in found.parameters()] == [trained, trained]


def test_a_network_without_parameters_is_one_too():
    pooled = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
    torch.testing.assert_close(fusing.fuse(pooled, IMAGES, "all").network(IMAGES), pooled(IMAGES))
