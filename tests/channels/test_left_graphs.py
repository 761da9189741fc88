"""A forward in training that keeps a tensor of its own, with its graph: the network is copied all the same."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from memexp.fusing import fuse
from memexp.pruning import mask_weights, prune

X = torch.randn(2, 3, 8, 8)
DATA = [(X, torch.tensor([0, 1]))]


class Keeping(nn.Module):
    """In training it keeps a map, one in a list and one in a dict."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm, self.b = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 4, 3)
        self.seen: Any = None
        self.maps: list[Tensor] = []
        self.by_name: dict[str, Any] = {}

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.a(x)).relu()
        if self.training:
            self.seen, self.by_name["a"] = y, (y,)
            self.maps.append(y)
        return self.b(y).mean((2, 3))


USES: dict[str, Callable[[nn.Module], nn.Module]] = {
    "by weights": lambda network: prune(network, X, ratio=0.5)[0],
    "to a target": lambda network: prune(network, X, target="macs:0.5")[0],
    "by gradients": lambda network: prune(network, X, criterion="taylor_weight", ratio=0.5, data=DATA)[0],
    "masks": lambda network: mask_weights(network, ratio=0.5)[0],
    "fuse": lambda network: fuse(network, X).network,
    "fuse all": lambda network: fuse(network, X, "all").network,
}


@pytest.mark.parametrize("use", USES.values(), ids=list(USES))
def test_a_network_that_has_been_trained_a_step_is_copied(use: Callable[[nn.Module], nn.Module]) -> None:
    network = Keeping()
    network(X).sum().backward()
    kept = network.seen  # which stays as it is
    made = use(network.eval())
    made.train()(X).sum().backward()
    use(made.eval())  # and once more
    assert network.seen is kept
    assert kept.grad_fn is not None
