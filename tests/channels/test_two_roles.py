"""A weight that takes channels and makes channels too: by its transpose, or as the queries, keys and values of an attention."""

from collections.abc import Callable

import equality
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from memexp import channels
from memexp.pruning import Settings, remove


class Tied(nn.Module):
    """An autoencoder whose decoder has the encoder's weights, transposed."""

    def __init__(self, first: nn.Module, tied: nn.Module, last: nn.Module, decode: Callable[..., Tensor]) -> None:
        super().__init__()
        self.first, self.tied, self.last, self.decode = first, tied, last, decode
        self.bias = nn.Parameter(torch.randn(6))

    def forward(self, x: Tensor) -> Tensor:
        code = self.tied(self.first(x).relu()).relu()
        out: Tensor = self.last(self.decode(code, self.tied.weight, self.bias).relu())
        return out


def _linear(code: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return functional.linear(code, weight.t(), bias)


def _product(code: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return code @ weight + bias


class Queries(nn.Module):
    """DETR's decoder: its queries are parameters, so that those of the first attention are made by weights alone."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.TransformerDecoderLayer(8, 4, 6, batch_first=True)
        self.queries, self.embed, self.classes = nn.Parameter(torch.randn(1, 3, 8)), nn.Linear(5, 8), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.classes(self.layer(self.queries.expand(len(x), -1, -1), self.embed(x)))
        return out


def _layers() -> list[nn.Module]:
    return [nn.Linear(5, 6), nn.Linear(6, 7), nn.Linear(6, 4)]


def _convolutions() -> list[nn.Module]:
    return [nn.Conv2d(3, 6, 3), nn.Conv2d(6, 7, 3), nn.Conv2d(6, 4, 1)]


NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], list[int]]] = {
    "linear": (lambda: Tied(*_layers(), _linear), (4, 5), [6, 7]),
    "product": (lambda: Tied(*_layers(), _product), (4, 5), [6, 7]),
    "convolution": (lambda: Tied(*_convolutions(), functional.conv_transpose2d), (4, 3, 8, 8), [6, 7]),
    "queries": (Queries, (4, 7, 5), [8, 4, 4, 6]),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_a_weight_of_two_roles_is_narrowed(name: str) -> None:
    make, shape, sizes = NETWORKS[name]
    torch.manual_seed(0)
    network, x = equality.randomise(make().double()), torch.randn(shape, dtype=torch.float64)
    graph = channels.trace(network, x)
    assert [group.size for group in graph.groups] == sizes
    for number, group in enumerate(graph.groups):
        kept = {number: list(range(group.size // 2))}
        assert equality.difference(network, graph, kept, x)[1] < 1e-12


SCORED = [("linear", "l1_norm"), ("linear", "taylor_activation"), ("linear", "entropy"), ("convolution", "entropy")]


@pytest.mark.parametrize(("name", "criterion"), SCORED)
def test_a_weight_of_two_roles_is_scored(name: str, criterion: str) -> None:
    make, shape, _ = NETWORKS[name]
    torch.manual_seed(0)
    network, x = make(), torch.randn(shape)
    targets = torch.zeros(4, *([6, 6] if name == "convolution" else []), dtype=torch.long)
    found = remove(network, x, criterion, Settings(ratio=0.5), data=[(x, targets)])
    assert [(len(group["scores"]), len(group["kept"])) for group in found.groups] == [(6, 3), (7, 3)]
    if criterion == "entropy":  # of what the layer before gives: the tied layer's output has other channels
        assert isinstance(network, Tied)
        plain = nn.Sequential(network.first, nn.ReLU(), network.tied)
        (group,) = remove(plain, x, criterion, Settings(ratio=0.5), data=[(x, targets)]).groups
        assert found.groups[0]["scores"] == pytest.approx(group["scores"])
