"""Criteria of second derivatives on networks of which torch gives first ones only."""

import pytest
import torch
from torch import nn

from memexp.pruning import prune
from memexp.pruning.calibration import Calibration
from memexp.pruning.criteria.gradient import hessian_diagonal

IMAGES = torch.randn(6, 3, 5, 5, generator=torch.Generator().manual_seed(0))
DATA = [(IMAGES, torch.arange(6) % 4)]


class Sixths(nn.Module):
    """Hardsigmoid, written so that torch can differentiate it twice."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.relu6(x + 3) / 6


def network(middle: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 6, 3), middle, nn.Flatten(), nn.Linear(54, 8), nn.Tanh(), nn.Linear(8, 4)).eval()


@pytest.mark.parametrize("middle", [nn.Hardsigmoid(), nn.Hardsigmoid(inplace=True)])
def test_hardsigmoid_has_second_derivatives(middle):
    found, expected = (
        hessian_diagonal(network(m), ["0.weight"], Calibration(DATA, nn.functional.cross_entropy), 4)["0.weight"]
        for m in (middle, Sixths())
    )
    assert expected.abs().max() > 0
    torch.testing.assert_close(found, expected)
    for criterion in ("obd", "obs"):
        assert prune(network(middle), IMAGES, criterion=criterion, ratio=0.5, data=DATA)[0][0].out_channels == 3


@pytest.mark.parametrize("criterion", ["obd", "obs"])
def test_a_loss_without_second_derivatives_is_one_sentence(criterion):
    loss_fn = nn.functional.multi_margin_loss
    said = f"{criterion} needs second derivatives .*multi_margin_loss.*choose a criterion"
    with pytest.raises(ValueError, match=said):
        prune(network(nn.ReLU()), IMAGES, criterion=criterion, ratio=0.5, data=DATA, loss_fn=loss_fn)
