"""A forward that goes one way or another by what it is given: its costs are those of the way that it goes."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from memexp.pruning import Settings, remove
from memexp.pruning.counting import macs_of

Way = Callable[["Ways", Tensor, Tensor], Tensor]


class Ways(nn.Module):
    """Two layers, and a third where `way` says so, which reads the input's values."""

    def __init__(self, way: Way) -> None:
        super().__init__()
        self.way = way
        self.a, self.b, self.c = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 16, 3), nn.Conv2d(16, 16, 3)
        self.o = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.o(self.way(self, self.b(self.a(x).relu()).relu(), x).mean((2, 3)))


def where_it_is_large(network: Ways, y: Tensor, x: Tensor) -> Tensor:
    return network.c(y).relu() if x.max() > 1 else y


def as_often_as_it_says(network: Ways, y: Tensor, x: Tensor) -> Tensor:
    for _ in range(int(x.max())):
        y = network.c(nn.functional.pad(y, (1, 1, 1, 1))).relu()
    return y


def at_some_places(network: Ways, y: Tensor, x: Tensor) -> Tensor:
    return network.c(y).relu()[..., (x[0, 0, 0, :6] > -9).nonzero()[:, 0]]


X = torch.randn(2, 3, 12, 12, generator=torch.Generator().manual_seed(0))
TARGETS = [{"target": "macs:0.5"}, {"target": "params:0.5"}, {"target": "macs:0.7", "order": "energy"}]


@pytest.mark.parametrize("target", TARGETS, ids=str)
@pytest.mark.parametrize("way", [where_it_is_large, as_often_as_it_says, at_some_places])
def test_a_target_is_met_on_the_way_that_the_network_goes(way: Way, target: dict[str, str]) -> None:
    torch.manual_seed(0)
    network = Ways(way).eval()
    found = remove(network, X, "l1_norm", Settings(**target))  # type: ignore[arg-type]
    measure, _, share = target["target"].partition(":")
    figure = found.record[{"macs": "macs", "params": "parameters"}[measure]]
    assert figure["after"] / figure["before"] == pytest.approx(float(share), rel=0.02)
    assert found.record["macs"]["after"] == macs_of(found.network, (X,))
