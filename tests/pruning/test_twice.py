"""Criteria of second derivatives on networks of which torch gives first ones only."""

import pytest
import torch
from torch import nn
from torch.autograd.function import once_differentiable

from memexp.pruning import Settings, prune, remove
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


class Square(torch.autograd.Function):
    """As people write it who think of training alone."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        (x,) = ctx.saved_tensors
        return 2 * x * grad


class Squared(nn.Module):
    def forward(self, x):
        return Square.apply(x)


@pytest.mark.parametrize("criterion", ["obd", "obs"])
def test_a_function_that_is_once_differentiable_is_refused_and_no_curvature_of_0(criterion):
    with pytest.raises(
        ValueError, match=f"{criterion} needs second .*Square.backward is once_differentiable.*: choose"
    ):
        prune(network(Squared()), IMAGES, criterion=criterion, ratio=0.5, data=DATA)


@pytest.mark.parametrize("criterion", ["obd", "obs"])
def test_a_loss_that_is_linear_in_a_layer_has_no_curvature_there(criterion):
    own = nn.Sequential(nn.Flatten(), nn.Linear(75, 4), nn.Tanh(), nn.Linear(4, 6), nn.Flatten(), nn.Linear(6, 2))
    removed = remove(
        own, IMAGES, criterion, Settings(ratio=0.5), data=DATA, loss_fn=lambda scores, _: scores.sum(1).mean()
    )
    assert all(torch.isfinite(torch.as_tensor(group["scores"])).all() for group in removed.groups)
