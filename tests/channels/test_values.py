"""A width that is also a value: what it counts stays, or the network would compute with another number."""

import math
from collections.abc import Callable

import equality
import pytest
import torch
from torch import Tensor, nn

from memexp import channels
from memexp.integral import convert
from memexp.pruning import prune
from memexp.pruning.checking import CheckFailed


class Valued(nn.Module):
    """Features viewed as `c` channels, with a number made of c in the forward; the layer after them is free.

    of: the attribute, or the length of the tensor.
    """

    def __init__(self, number: Callable[[Tensor, int], Tensor], of: str) -> None:
        super().__init__()
        self.c, self.sizes, self.of, self.number = 8, (8, 3), of, number
        self.f, self.d, self.o = nn.Linear(4, 24), nn.Conv1d(8, 6, 1), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        width = self.sizes[0] if self.of == "item" else self.c
        y = self.f(x).relu().view(len(x), width, -1)
        return self.o(self.d(self.number(y, y.shape[1] if self.of == "shape" else width)).relu().mean(2))


NUMBERS: dict[str, Callable[[Tensor, int], Tensor]] = {
    "divided": lambda y, c: y / c,
    "divisor of a number": lambda y, c: y * (1 / c),
    "root": lambda y, c: y * c**-0.5,
    "math.sqrt": lambda y, c: y / math.sqrt(c),
    "product with a number": lambda y, c: y / (c * 2),
    "product with a float": lambda y, c: y * (c * 0.5),
    "quotient": lambda y, c: y * (c // 2),
    "added": lambda y, c: c + y,
    "keyword": lambda y, c: torch.add(y, y, alpha=c),
    "tensor": lambda y, c: y * torch.tensor(c),
    "filled": lambda y, c: y * torch.full((1,), float(c)),
    "bound": lambda y, c: (y * 9).clamp(max=c),
    "compared": lambda y, c: y * (y * 9 < c),
    "remainder": lambda y, c: torch.remainder(y, c),
}


@pytest.mark.parametrize("of", ["attribute", "item", "shape"])
@pytest.mark.parametrize("name", NUMBERS)
def test_what_a_value_counts_stays(name: str, of: str) -> None:
    torch.manual_seed(0)
    network, x = equality.randomise(Valued(NUMBERS[name], of).double()), torch.randn(2, 4, dtype=torch.float64)
    graph = channels.trace(network, x)
    assert [(group.size, group.members[0].name) for group in graph.groups] == [(6, "d.weight")]
    assert "itself a value" in graph.frozen["f.weight", 0]
    narrowed, error = equality.difference(network, graph, {0: [0, 2, 3]}, x)
    assert error < 1e-12
    assert (narrowed.c, narrowed.sizes) == (8, (8, 3))


@pytest.mark.parametrize("of", ["attribute", "item"])
def test_an_attribute_that_is_a_width_alone_follows(of: str) -> None:
    torch.manual_seed(0)
    network = equality.randomise(Valued(lambda y, c: y.view(len(y), c, -1), of).double())
    x = torch.randn(2, 4, dtype=torch.float64)
    graph = channels.trace(network, x)
    assert [group.size for group in graph.groups] == [8, 6]
    narrowed, error = equality.difference(network, graph, {0: [0, 2, 3, 7]}, x)
    assert error < 1e-12
    assert (narrowed.c if of == "attribute" else narrowed.sizes[0]) == 4


def test_an_integral_network_keeps_a_width_that_is_a_value() -> None:
    network, x = Valued(lambda y, c: y / c, "attribute").eval(), torch.randn(2, 4)
    integral = convert(network, x)
    assert list(integral.groups) == ["d"]
    assert "itself a value" in integral.discrete["f.weight[0]"]
    assert integral.discretize(0.5).c == 8


UNSEEN: dict[str, Callable[[Tensor, int], Tensor]] = {
    "product with a float from the left": lambda y, c: (0.5 * c) * y,
    "difference from a float": lambda y, c: (9.0 - c) * y,
    "math.log": lambda y, c: y * math.log(c),
    "int": lambda y, c: y * int(c // 2),
    "negative": lambda y, c: y * -c,
}


@pytest.mark.parametrize("of", ["attribute", "shape"])
@pytest.mark.parametrize("name", UNSEEN)
def test_a_value_that_a_trace_does_not_see_shows_in_what_is_computed(name: str, of: str) -> None:
    torch.manual_seed(0)
    network, x = equality.randomise(Valued(UNSEEN[name], of).double()), torch.randn(2, 4, dtype=torch.float64)
    integral = convert(network, x)
    assert list(integral.groups) == ["d"]
    assert "computes with their number" in integral.discrete["f"]
    assert integral.discretize(0.5).c == 8
    with pytest.raises(CheckFailed, match="of the channels of f: the forward computes with their number"):
        prune(network, x, ratio=0.5)


class OfItself(nn.Conv1d):
    """Scaled by the width that the layer says of itself."""

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.conv1d(0.5 * self.in_channels * x, self.weight, self.bias)


def test_the_width_that_a_layer_says_of_itself_is_a_value_too() -> None:
    network = Valued(lambda y, c: y, "attribute").eval()
    network.d = OfItself(8, 6, 1)
    with pytest.raises(CheckFailed, match="of the channels of f: the forward computes with their number"):
        prune(network, torch.randn(2, 4), ratio=0.5)


class Masked(nn.Module):
    """Scores of which some are ruled out: minus infinity."""

    def __init__(self) -> None:
        super().__init__()
        self.f, self.o = nn.Linear(4, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        scores = self.o(self.f(x).relu())
        return scores.masked_fill(torch.tensor([False, True, False]), -torch.inf)


def test_infinities_in_an_output_say_nothing_of_channels() -> None:
    torch.manual_seed(0)
    assert list(convert(Masked(), torch.randn(2, 4)).groups) == ["f"]
