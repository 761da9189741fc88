"""What cannot be pruned, or not as it was asked for, is said and nothing is changed."""

import copy
import functools

import pytest
import torch
from removal_networks import DATA, IMAGES, family, small
from torch import nn

from memexp import integral
from memexp.pruning import Settings, mask_weights, narrowing, prune, remove
from memexp.pruning.checking import CheckFailed
from memexp.pruning.removal import foresee


def test_what_does_not_pass_the_check_is_not_pruned(monkeypatch):
    """The edit keeps other channels than the mask: a wrong index somewhere."""
    network = small()
    before = copy.deepcopy(network.state_dict())
    wrong = narrowing.narrow_edit
    monkeypatch.setattr(
        narrowing,
        "narrow_edit",
        lambda graph, kept: wrong(graph, {n: list(range(len(left))) for n, left in kept.items()}),
    )
    with pytest.raises(CheckFailed, match=r"outputs differ from the masked network's by .* nothing was pruned"):
        prune(network, IMAGES, ratio=0.5)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


class Branching(nn.Module):
    """Which way it takes depends on values, of which a trace sees zeros; or it computes with numpy."""

    def __init__(self, kind):
        super().__init__()
        self.kind, self.a, self.b, self.c = kind, *(nn.Conv2d(i, 8, 3, padding=1) for i in (3, 8, 8))
        self.d = nn.Conv2d(8, 5, 1)

    def forward(self, x):
        x = self.a(x).relu()
        if self.kind == "numpy":
            return self.d(self.b(x) * torch.from_numpy(x.detach().numpy().mean((0, 2, 3)))[:, None, None])
        return self.d((self.b if x.mean() > 0.01 else self.c)(x).relu())


@pytest.mark.parametrize("kind", ["numpy", "values"])
def test_a_forward_that_a_trace_cannot_see_is_not_pruned(kind):
    torch.manual_seed(0)
    with pytest.raises(CheckFailed, match=r"narrowed network's forward fails where the network's does not \(.*nothing"):
        prune(Branching(kind), torch.randn(2, 3, 8, 8), ratio=0.5)


def test_a_network_that_says_nothing_but_nan_does_not_pass():
    network = small()
    network[-1].bias.data[0] = float("nan")
    with pytest.raises(CheckFailed):
        prune(network, IMAGES, ratio=0.5)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"ratio": 1.0}, "ratio=1 is not allowed: the share of channels that goes is above 0 and below 1"),
        ({"ratio": 0.0}, "ratio=0 is not allowed"),
        ({}, "ratio=None, target=None: give one of the two"),
        ({"ratio": 0.5, "target": "macs:0.5"}, "give one of the two"),
        ({"target": "flops:0.5"}, "target='flops:0.5' is not allowed: give one of macs, params, latency"),
        ({"target": "macs:1"}, "target='macs:1' is not allowed"),
        ({"target": "macs:0.001"}, "target=macs:0.001 cannot be met: with every layer at its least width 0.0"),
        ({"target": "params:0.001", "scope": "global"}, "target=params:0.001 cannot be met"),
        ({"ratio": 0.95, "scope": "global"}, "ratio=0.95 with floor=0.1 cannot be"),
        ({"ratio": 0.89, "scope": "global"}, "ratio=0.89 is 25 of 28 channels, and with every layer at its floor 24 go"),
        ({"ratio": 0.5, "scope": "all"}, "scope='all' is not allowed: use layer, global or a list"),
        ({"scope": {}}, "scope is an empty list"),
        ({"scope": {"4": 1.0}}, "layer 4 has the share 1.0: use a number of at least 0 and below 1"),
        ({"scope": {"conv": 0.5}}, "there is no layer 'conv'; nearest: 0, 4, 8"),
        ({"scope": {"2": 0.5}}, "2 makes no channels that can go; layers that do: 0, 4, 8"),
        ({"scope": {"13": 0.5}}, "the channels of layer 13 cannot go: it is part of the network's output"),
        ({"scope": {"4": 0.5}, "ratio": 0.5}, "scope: a list of layers settles every width"),
        ({"ratio": 0.5, "order": "random"}, "order='random' is not one of sequential, energy, latency"),
        ({"ratio": 0.5, "order": "energy"}, "order=energy goes until a target is met"),
        ({"target": "macs:0.5", "order": "latency"}, "order=latency needs target=latency:SHARE"),
        ({"target": "latency:0.5", "order": "latency"}, "order=latency reads data, and there is none"),
        ({"ratio": 0.5, "floor": 0.0}, "floor=0 is not allowed"),
        ({"ratio": 0.5, "criterion": "magnitude"}, "criterion='magnitude' is not one of l1_norm"),
        ({"ratio": 0.5, "criterion": "fisher"}, "criterion=fisher reads data, and there is none: give data="),
        ({"ratio": 0.5, "criterion": "apoz", "data": iter(DATA)}, "data can be gone through only once"),
        ({"ratio": 0.5, "criterion": "fisher", "data": DATA[0]}, "a batch that is a Tensor, and each is a pair"),
        ({"ratio": 0.5, "criterion": "fisher", "data": [{"image": IMAGES}]}, "a batch that is a dict, and each is a pair"),
        ({"ratio": 0.5, "criterion": "apoz", "data": [(IMAGES,)]}, "a batch of 1 items, and each is a pair"),
        ({"ratio": 0.5, "criterion": "apoz", "data": []}, "data holds no batch"),
    ],
)  # fmt: skip
def test_what_cannot_be_asked_is_refused_in_a_sentence(asked, message):
    with pytest.raises(ValueError, match=message) as error:
        prune(small(), IMAGES, **asked)
    assert "\n" not in str(error.value)


def test_coupled_layers_cannot_give_different_shares():
    network = family("resnet", depth=14)
    coupled = next(
        group for group in remove(network, IMAGES, "l1_norm", Settings(ratio=0.1)).groups if len(group["layers"]) > 1
    )
    one, other, *_ = coupled["layers"]
    with pytest.raises(ValueError, match=f"layers {one} and {other} share channels, so they cannot give 0.5 and 0.25"):
        prune(network, IMAGES, scope={one: 0.5, other: 0.25})


def test_a_network_without_inner_channels_is_refused():
    with pytest.raises(ValueError, match="no layer of this network has channels that can be removed"):
        prune(nn.Linear(3, 2), torch.randn(2, 3), ratio=0.5)


def test_a_target_between_two_single_channels_is_refused():
    network = nn.Sequential(nn.Linear(4, 2), nn.ReLU(), nn.Linear(2, 3))
    with pytest.raises(ValueError, match=r"target=macs:0.7 cannot be met within 2%: .* next to it are 0.500 and 1.000"):
        prune(network, torch.randn(2, 4), target="macs:0.7")


@pytest.mark.parametrize(
    ("criterion", "asked", "options"),
    [
        ("bn_scale", {"ratio": 0.5}, None),
        ("taylor_weight", {"ratio": 0.5}, {"gates": True}),
        ("apoz", {"ratio": 0.5}, None),
        ("obs", {"ratio": 0.5}, {"largest": 3}),
        ("l1_norm", {"target": "macs:0.7"}, None),
        ("l1_norm", {"target": "macs:0.1"}, None),
        ("l1_norm", {"scope": {"3": 0.5}}, None),
        ("l1_nrom", {"ratio": 0.5}, None),
    ],
)
def test_what_is_foreseen_is_what_the_removal_says(criterion, asked, options):
    network = nn.Sequential(nn.Linear(4, 2), nn.Sigmoid(), nn.Linear(2, 3))
    told = []
    for attempt in (foresee, functools.partial(remove, data=[(torch.randn(2, 4), torch.tensor([0, 1]))])):
        with pytest.raises(ValueError, match=r".+") as caught:
            attempt(network, torch.randn(2, 4), criterion, Settings(**asked), options=options)
        told.append(str(caught.value))
    assert told[0] == told[1]


def test_what_can_be_done_is_not_refused_before():
    for criterion in ("l1_norm", "bn_scale", "apoz", "taylor_weight"):
        for asked in ({"ratio": 0.5}, {"target": "macs:0.5"}, {"target": "params:0.3", "scope": "global"}):
            foresee(small((32, 48, 40)), IMAGES[:2], criterion, Settings(**asked), rounds=2)


def test_an_integral_network_is_refused_until_it_has_a_size():
    layers = (nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4))
    x = torch.randn(2, 3, 16, 16)
    network = integral.convert(nn.Sequential(*layers), x)
    refused = r"the network is integral: its channels and weights are samples.*discretize"
    with pytest.raises(ValueError, match=refused):
        prune(network, x, criterion="l1_norm", ratio=0.3)
    with pytest.raises(ValueError, match=refused):
        mask_weights(network, ratio=0.3)
    pruned, _ = prune(network.discretize(0.8), x, criterion="l1_norm", ratio=0.3)
    assert pruned(x).shape == (2, 4)


class Turned(nn.Module):
    """Channels in reverse order stay; a layer behind them is free."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(4, 32), nn.Linear(32, 4), nn.Linear(4, 3)

    def forward(self, x):
        return self.c(self.b(self.a(x).flip(1)))


@pytest.mark.parametrize("asked", [{}, {"scope": "global"}, {"order": "energy"}])
def test_a_target_out_of_reach_is_told_with_what_stays(asked):
    message = (
        r"with every layer at its least width 0\..*; layers that keep all of theirs: a\.weight: aten\.flip.*places$"
    )
    for attempt in (
        lambda: prune(Turned(), torch.randn(2, 4), target="macs:0.05", **asked),
        lambda: foresee(Turned(), torch.randn(2, 4), "l1_norm", Settings(target="macs:0.05", **asked)),
    ):
        with pytest.raises(ValueError, match=message):
            attempt()
