"""Who only looks at a network leaves what its own forwards have left in it, and the caller's random numbers."""

import copy
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from memexp import fusing, integral, pruning

X, Y = torch.randn(4, 3, 6, 6), torch.tensor([0, 1, 2, 3])


class Kept(nn.Module):
    """Keeps features, counts calls, and has a buffer that is not saved."""

    calls: Tensor
    features: Tensor | None

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.last = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.Conv2d(8, 4, 3)
        self.features, self.shapes = None, list[Any]()
        self.register_buffer("calls", torch.tensor(0), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        self.features = self.norm(self.first(x)).relu()
        self.shapes.append(x.shape)
        self.calls += 1
        return self.last(self.features).mean((2, 3))


def called(module: nn.Module, inputs: Sequence[Tensor]) -> float:
    """In place of a clock: a second for each parameter."""
    module(*inputs)
    return float(sum(p.numel() for p in module.parameters()))


def prune(criterion: str, **settings: Any) -> Callable[[nn.Module], object]:
    chosen = pruning.Settings(**({"ratio": 0.5} | settings))
    return lambda network: pruning.remove(network, X, criterion, chosen, data=[(X, Y)], measure=called).network


LOOKS: dict[str, Callable[[nn.Module], object]] = {
    **{name: prune(name) for name in ("l1_norm", "taylor_activation", "fisher", "obd", "apoz")},
    "latency": prune("l1_norm", ratio=None, target="latency:0.876", scope="global"),
    "mask": lambda network: pruning.mask_weights(network, criterion="snip", ratio=0.5, data=[(X, Y)])[0],
    "fuse": lambda network: fusing.fuse(network, X).network,
    "compare": lambda network: fusing.compare(network, X).costs,
    "grow": lambda network: fusing.grow(network, [X]),
    "folds": lambda network: fusing.folds(network, X),
    "growable": lambda network: fusing.growable(network, X),
    "convert": lambda network: integral.convert(network, X),
}


@pytest.mark.parametrize("look", LOOKS)
def test_what_a_network_has_kept_of_its_last_pass_stays(look: str) -> None:
    torch.manual_seed(0)
    network = Kept().eval()
    network(X[:3])
    features, shapes = network.features, list(network.shapes)
    assert features is not None
    before, drawn = features.detach().clone(), torch.get_rng_state()
    found = LOOKS[look](network)
    assert torch.equal(torch.get_rng_state(), drawn)
    assert network.features is features
    assert torch.equal(features, before)
    assert (network.shapes, int(network.calls)) == (shapes, 1)
    if isinstance(found, Kept):
        assert (found.shapes, int(found.calls)) == (shapes, 1)
        copy.deepcopy(found)
