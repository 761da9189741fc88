"""Networks that draw random numbers in evaluation mode too are followed and compared, and what they draw is given back."""

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from memexp import fusing, integral, pruning

X = torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class Drawing(nn.Module):
    """draw: what is done between two of its layers."""

    def __init__(self, draw: Callable[["Drawing", Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.norm, self.b, self.c = (
            nn.Conv2d(3, 6, 3),
            nn.BatchNorm2d(6),
            nn.Conv2d(6, 6, 1),
            nn.Conv2d(6, 4, 1),
        )
        self.draw = draw

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.c(self.b(self.draw(self, self.norm(self.a(x)))).relu()).mean((2, 3))
        return out


def _gumbel(network: Drawing, x: Tensor) -> Tensor:
    return x + torch.empty_like(x).exponential_().log()


def _code(network: Drawing, x: Tensor) -> Tensor:
    return x + torch.randn_like(x) * network.b(x).div(2).exp()


def _hidden(network: Drawing, x: Tensor) -> Tensor:
    """Half of the positions, in an order by chance."""
    order = torch.rand(len(x), 36).argsort(1)
    gone = torch.zeros(len(x), 36).scatter(1, order[:, :18], 1.0)
    return x * (1 - gone).view(len(x), 1, *x.shape[2:])


DRAWS: dict[str, Callable[[Drawing, Tensor], Tensor]] = {
    "dropout that is never off": lambda network, x: functional.dropout(x, 0.5),
    "of whole channels": lambda network, x: functional.dropout2d(x, 0.5),
    "noise of all channels": lambda network, x: x + torch.randn(len(x), 1, *x.shape[2:]),
    "of a code": _code,
    "in place": _gumbel,
    "of positions": _hidden,
    "an order": lambda network, x: x[torch.randperm(len(x))] + x,
}


@pytest.mark.parametrize("name", DRAWS)
def test_a_network_that_draws_is_pruned_and_fused(name: str) -> None:
    network = Drawing(DRAWS[name]).eval()
    before = torch.get_rng_state()
    removal = pruning.remove(network, X, "l1_norm", pruning.Settings(ratio=0.5))
    assert [len(group["scores"]) for group in removal.groups] == (
        [6] if name in ("of whole channels", "of a code") else [6, 6]
    )
    assert removal.record["check"]["error"] <= 1e-5
    fused = fusing.fuse(network, X)
    assert fused.error <= 1e-5
    assert type(fused.network.norm) is nn.Identity
    assert integral.convert(network, X).groups
    assert torch.equal(torch.get_rng_state(), before)
    with torch.no_grad():  # what computes something else is found all the same
        fused.network.c.weight *= 1.01
    with pytest.raises(fusing.FusingError, match="outputs differ"):
        fusing.check(network, fused.network, [X])


OWN = torch.Generator()
OF_THEIR_INPUT: dict[str, Callable[[Tensor], Tensor]] = {
    "about a mean": lambda x: torch.normal(x),
    "of a deviation": lambda x: torch.normal(0.0, x.exp()),
    "of both": lambda x: torch.distributions.Normal(x, x.exp()).sample(),
    "true by its probability": lambda x: torch.bernoulli(x.sigmoid()),
    "true in place": lambda x: torch.empty_like(x).bernoulli_(x.sigmoid()),
    "by a generator of its own": lambda x: x[torch.randperm(len(x), generator=OWN)],
}


@pytest.mark.parametrize("name", OF_THEIR_INPUT)
def test_what_is_drawn_follows_what_it_is_drawn_of(name: str) -> None:
    class Sampling(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            drawn: Tensor = OF_THEIR_INPUT[name](super().forward(x))
            return drawn

    network = Sampling(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 4)).eval()
    other = copy.deepcopy(network)
    x, before = torch.randn(6, 4), OWN.get_state()
    assert fusing.check(network, other, [x]) == 0
    assert torch.equal(OWN.get_state(), before)
    with torch.no_grad():
        other[2].weight *= 1.5
    with pytest.raises(fusing.FusingError, match="outputs differ"):
        fusing.check(network, other, [x])
