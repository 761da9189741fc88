"""Groups of channels, and scores of them."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from memexp.pruning.calibration import Calibration
from memexp.pruning.criteria import create


@dataclass(frozen=True)
class Member:
    name: str
    dim: int
    indices: tuple[tuple[int, ...], ...]
    role: str


@dataclass(frozen=True)
class Group:
    members: tuple[Member, ...]

    @property
    def size(self) -> int:
        return len(self.members[0].indices)


def group(size: int, out: tuple[str, ...] = (), norm: tuple[str, ...] = ()) -> Group:
    """A group of hand: channel i is index i of the first dimension of each member."""
    each = tuple((i,) for i in range(size))
    members = [Member(name, 0, each, "out") for name in out] + [Member(name, 0, each, "norm") for name in norm]
    return Group(tuple(members))


def scored(criterion, network, *groups, data=(), loss_fn=functional.cross_entropy, seed=0) -> list[Tensor]:
    return create(criterion).scores(network, groups, Calibration(data, loss_fn, seed))


class Tiny(nn.Sequential):
    """Linear layers of given weights, one output a filter."""

    def __init__(self, *weights: list[list[float]]) -> None:
        super().__init__()
        for i, weight in enumerate(weights):
            w = torch.tensor(weight)
            layer = nn.Linear(w.shape[1], w.shape[0], bias=False)
            layer.weight.data = w
            self.add_module(str(i), layer)


def quadratic(outputs: Tensor, targets: Tensor) -> Tensor:
    """Mean over the samples of sum y^2 / 2 - t sum y, so that dL/dy = y - t."""
    return (outputs.square().sum(1) / 2 - targets * outputs.sum(1)).mean()
