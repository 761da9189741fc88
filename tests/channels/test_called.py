"""Who only looks at a network leaves its modes and the inputs as they are, and knows how many samples a call is of."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from memexp.channels import trace
from memexp.fusing import fuse, grow
from memexp.fusing.measure import costs
from memexp.integral import convert
from memexp.pruning import Settings, remove

LABELS = torch.tensor([0, 1, 2, 0])


class Preactivated(nn.Module):
    """x + conv(relu(norm(x))): a normalisation that folds into nothing."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.conv = nn.BatchNorm2d(width), nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(self.norm(x).relu())


def partly_frozen() -> nn.Module:
    """In training mode, but for a normalisation and a dropout; of the normalisation no parameter is trained."""
    torch.manual_seed(0)
    layers = [
        nn.Conv2d(3, 16, 3),
        Preactivated(16),
        nn.Conv2d(16, 12, 3),
        nn.BatchNorm2d(12),
        nn.Dropout(0.3),
        nn.ReLU(),
    ]
    network = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 3)).train()
    network[1].norm.eval().requires_grad_(False)
    network[4].eval()
    return network


def modes(network: nn.Module) -> dict[str, bool]:
    return {name: module.training for name, module in network.named_modules()}


IMAGES = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
MADE: dict[str, Callable[[nn.Module], nn.Module]] = {
    "pruned": lambda network: remove(network, IMAGES, "l1_norm", Settings(ratio=0.5)).network,
    "integral": lambda network: convert(network, IMAGES).network,
    "integral, with its normalisations": lambda network: convert(network, IMAGES, fold=False).network,
    "half of an integral one": lambda network: convert(network, IMAGES, fold=False).discretize(0.5),
}


@pytest.mark.parametrize("way", MADE)
def test_each_module_keeps_its_mode_and_what_is_frozen(way: str) -> None:
    network = partly_frozen()
    before, frozen = modes(network), {name for name, p in network.named_parameters() if not p.requires_grad}
    made = MADE[way](network)
    assert modes(network) == before == modes(made)
    assert {name for name, p in made.named_parameters() if not p.requires_grad} == frozen


def test_a_frozen_normalisation_has_the_size_of_the_training_step() -> None:
    integral = convert(partly_frozen(), IMAGES, fold=False)
    norm = integral.network[1].norm
    before = copy.deepcopy(norm.state_dict())
    for _ in range(3):
        integral(IMAGES).sum().backward()
        assert integral.network[0].weight.grad.abs().sum() > 0
    assert all(torch.equal(value, before[name]) for name, value in norm.state_dict().items())
    assert integral.eval()(IMAGES).shape == (4, 3)


class InPlace(nn.Module):
    """Normalises what it is given where it stands."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 8, 3), nn.Linear(8, 3)

    def forward(self, given: Any) -> Tensor:
        x = given["x"] if isinstance(given, dict) else given
        return self.head(self.conv(x.mul_(2).sub_(0.3)).relu().mean((2, 3)))


LOOKED: dict[str, Callable[[nn.Module, Any], object]] = {
    "trace": trace,
    "convert": convert,
    "fuse": lambda network, given: fuse(network, [given]),
    "grow": lambda network, given: grow(network, [[given]]),
    "costs": lambda network, given: costs({"": network}, [[given]]),
} | {
    criterion: lambda network, given, criterion=criterion: remove(
        network, [given], criterion, Settings(ratio=0.5), data=[([given], LABELS)]
    )
    for criterion in ("l1_norm", "entropy", "fisher", "obd", "taylor_weight")
}


@pytest.mark.parametrize("form", ["tensor", "dict"])
@pytest.mark.parametrize("way", LOOKED)
def test_inputs_are_as_they_were(way: str, form: str) -> None:
    torch.manual_seed(0)
    given = IMAGES.clone() if form == "tensor" else {"x": IMAGES.clone()}
    LOOKED[way](InPlace().eval(), given)
    assert all(torch.equal(x, IMAGES) for x in tree_leaves(given))


class Graph(nn.Module):
    """Two features of each node, summed over edges, to three numbers of the whole graph."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(2, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor, edges: Tensor) -> Tensor:
        y = self.a(x)
        return self.b(torch.zeros_like(y).index_add(0, edges[1], y[edges[0]]).relu().mean(0))


CONV = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3), nn.Flatten(-3), nn.Linear(64, 5))
MACS_OF_CONV = 36 * 8 * 27 + 16 * 4 * 72 + 64 * 5
SAMPLES: dict[str, tuple[nn.Module, tuple[Tensor, ...], int]] = {
    "a batch": (CONV, (IMAGES,), MACS_OF_CONV),
    "one image alone": (CONV, (IMAGES[0],), MACS_OF_CONV),
    "a graph": (Graph(), (torch.randn(6, 2), torch.randint(6, (2, 6))), 6 * 2 * 8 + 8 * 3),
}


@pytest.mark.parametrize("case", SAMPLES)
def test_macs_are_of_one_sample(case: str) -> None:
    network, inputs, macs = SAMPLES[case]
    assert remove(network, inputs, "l1_norm", Settings(ratio=0.5)).record["macs"]["before"] == macs
    assert costs({"": network}, [inputs])[""]["macs"] == macs


class Described(nn.Module):
    """A tied weight, and in the state dict what is no tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.a, self.head = nn.Linear(5, 8, bias=False), nn.Linear(8, 6), nn.Linear(5, 8, bias=False)
        self.b, self.head.weight = nn.Linear(6, 5, bias=False), self.embed.weight

    def get_extra_state(self) -> dict[str, int]:
        return {"version": 3}

    def set_extra_state(self, state: dict[str, int]) -> None:
        assert state == {"version": 3}

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.b(self.a(self.embed(x)).reshape(x.shape[0], -1).relu()))


def test_what_is_no_tensor_in_a_state_dict_is_passed_over_and_tied_weights_count_once() -> None:
    torch.manual_seed(0)
    network, x = Described().eval(), torch.randn(2, 5)
    assert [group.size for group in trace(network, x).groups] == [6]
    removal = remove(network, x, "l1_norm", Settings(ratio=0.5))
    found = costs({"before": network, "after": fuse(removal.network, x).network}, [x])
    assert {name: figures["bytes"] for name, figures in found.items()} == {
        "before": 4 * (5 * 8 + 8 * 6 + 6 + 6 * 5),
        "after": 4 * (5 * 8 + 8 * 3 + 3 + 3 * 5),
    }
