"""Who only looks at a network leaves each of its modules in the mode that it was in."""

import pytest
import torch
from torch import nn

from memexp.memory.meter import macs_per_image
from memexp.modes import evaluating
from memexp.report.layers import summarise


class Merging(nn.Module):
    """As adapters of low rank are: one weight in evaluation, two in training, and a method that sees to it."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.merged = nn.Linear(3, 3), False

    def train(self, mode: bool = True) -> "Merging":
        self.merged = not mode
        return super().train(mode)


def frozen() -> nn.Sequential:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4 * 36, 2))
    network[1].eval()
    return network


@pytest.mark.parametrize("mode", [True, False])
def test_a_method_of_the_users_is_asked(mode):
    network = nn.Sequential(Merging()).train(mode)
    with evaluating(network):
        assert network[0].merged
    assert network[0].merged is not mode


@pytest.mark.parametrize("look", [macs_per_image, summarise])
def test_a_frozen_normalisation_stays_frozen(look):
    network = frozen()
    look(network, (3, 8, 8))
    assert [module.training for module in network.modules()] == [True, True, False, True, True]


def test_it_is_so_after_an_error():
    network = frozen()
    with pytest.raises(RuntimeError), evaluating(network):
        network(torch.zeros(1, 4, 8, 8))
    assert [module.training for module in network.modules()] == [True, True, False, True, True]
