"""A number that is made of weights alone (a norm of one) depends on what is summed in it: its inputs stay."""

from collections.abc import Callable

import equality
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrizations, spectral_norm

from memexp import channels

WORDS = "the norm of the weight is taken over it"
SPECTRAL: dict[str, Callable[[nn.Module], nn.Module]] = {
    "parametrised": parametrizations.spectral_norm,
    "hook": spectral_norm,
}
NETWORKS: dict[str, tuple[Callable[[], list[nn.Module]], tuple[int, ...]]] = {
    "1x1": (lambda: [nn.Conv2d(3, 8, 3), nn.Conv2d(8, 6, 1), nn.Conv2d(6, 5, 1)], (2, 3, 6, 6)),
    "3x3": (lambda: [nn.Conv2d(3, 8, 3), nn.Conv2d(8, 6, 3), nn.Conv2d(6, 5, 1)], (2, 3, 6, 6)),
    "transposed": (lambda: [nn.Conv2d(3, 8, 3), nn.ConvTranspose2d(8, 6, 2), nn.Conv2d(6, 5, 1)], (2, 3, 6, 6)),
    "linear": (lambda: [nn.Linear(4, 8), nn.Linear(8, 6), nn.Linear(6, 5)], (2, 4)),
}


@pytest.mark.parametrize("kind", SPECTRAL)
@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.filterwarnings("ignore:.*spectral_norm")
@torch.no_grad()
def test_the_inputs_of_a_spectrally_normalised_weight_stay(kind: str, name: str) -> None:
    layers, shape = NETWORKS[name]
    first, second, third = layers()
    network, x = nn.Sequential(first, SPECTRAL[kind](second), nn.ReLU(), third).eval(), torch.randn(shape)
    network(x)  # the hook's weight is a plain tensor that a forward has made
    graph = channels.trace(network, x)
    assert graph.groups == []  # the outputs are taken in a product with the buffer u
    assert WORDS in graph.frozen["0.weight", 0]


class Divided(nn.Module):
    """A weight over a number that is made of it, or of it and of buffers."""

    v: Tensor
    u: Tensor
    i: Tensor

    def __init__(self, number: Callable[["Divided", Tensor], Tensor]) -> None:
        super().__init__()
        self.number = number
        self.a, self.b, self.c = nn.Conv2d(3, 6, 1), nn.Conv2d(6, 8, 1), nn.Conv2d(8, 4, 1)
        self.register_buffer("v", torch.rand(6))
        self.register_buffer("u", torch.rand(8))
        self.register_buffer("i", torch.rand(1, 6, 3, 3))

    def forward(self, x: Tensor) -> Tensor:
        w = self.b.weight / self.number(self, self.b.weight.flatten(1))
        return self.c(functional.conv2d(self.a(x).relu(), w, self.b.bias).relu())


NUMBERS: dict[str, Callable[[Divided, Tensor], Tensor]] = {
    "power iteration from the left": lambda s, m: torch.dot(s.u @ m, s.v),
    "absolute sum": lambda s, m: m.abs().sum(),
    "root of squares": lambda s, m: m.square().sum().sqrt(),
    "gram of inputs": lambda s, m: (m.t() @ m).square().sum(),
    "gram of outputs": lambda s, m: (m @ m.t()).square().sum(),
    "weighed sum": lambda s, m: (m * s.v).sum(1).square().sum(),
    "convolved": lambda s, m: functional.conv2d(s.i, m[:, :, None, None]).square().sum(),
    "bilinear form": lambda s, m: torch.einsum("o,oi,i->", s.u, m, s.v),
}


@pytest.mark.parametrize("name", NUMBERS)
def test_inputs_of_a_weight_over_a_number_made_of_it_stay_and_its_outputs_can_go(name: str) -> None:
    torch.manual_seed(0)
    network, x = equality.randomise(Divided(NUMBERS[name]).double()), torch.randn(2, 3, 4, 4, dtype=torch.float64)
    graph = channels.trace(network, x)
    assert [group.size for group in graph.groups] == [8]
    assert equality.difference(network, graph, equality.choose(graph, 0.5), x)[1] < 1e-12


class Queries(nn.Module):
    """A learned parameter in place of an input (DETR's queries): its layers' channels are made by weights alone too."""

    def __init__(self) -> None:
        super().__init__()
        self.queries = nn.Parameter(torch.rand(4, 8))
        self.embed, self.hidden, self.q, self.k, self.v, self.o = (
            nn.Linear(*sizes) for sizes in ((5, 8), (8, 7), (7, 6), (8, 6), (8, 6), (6, 8))
        )
        self.classes = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        q = self.q(self.hidden(self.queries).relu())
        return self.classes(
            self.queries + self.o(functional.scaled_dot_product_attention(q[None], self.k(x), self.v(x)))
        )


def test_layers_that_are_given_a_parameter_are_narrowed() -> None:
    torch.manual_seed(0)
    network, x = equality.randomise(Queries().double()), torch.randn(2, 7, 5, dtype=torch.float64)
    graph = channels.trace(network, x)
    assert [group.size for group in graph.groups] == [8, 8, 7, 6]  # residual stream, embedding, hidden, values
    assert equality.difference(network, graph, equality.choose(graph, 0.5), x)[1] < 1e-12
