"""model=inn: over every base, on the meta device as on a real one, started from a trained network."""

import pytest
import torch
from integral_networks import build, relative

from memexp import models
from memexp.backprop import Chain
from memexp.integral import IntegralNetwork
from memexp.integral.family import inn, warm_start
from memexp.models.families import FAMILIES, caution

SHAPE = (3, 32, 32)


@pytest.mark.parametrize(
    ("base", "fold"),
    [("resnet20", False), ("resnet20", True), ("revnet38", True), ("vgg11", False), ("nin", True)]
    + [("torchvision/squeezenet1_1", False)],
)
def test_bases(base: str, fold: bool) -> None:
    with torch.device("meta"):
        bare = models.create("inn", classes=10, shape=SHAPE, chain=Chain, base=base, fold=fold)
    network = models.create("inn", classes=10, shape=SHAPE, chain=Chain, base=base, fold=fold)
    assert isinstance(network, IntegralNetwork)
    assert isinstance(bare, IntegralNetwork)
    assert bare.groups == network.groups
    bare.load_state_dict(network.state_dict(), assign=True)
    images = torch.randn(2, *SHAPE)
    assert torch.equal(bare.eval()(images), network.eval()(images))
    assert network(images).shape == (2, 10)


def test_parameters_of_network_in_network() -> None:
    assert sum(p.numel() for p in build("nin").parameters()) == 966_986


@pytest.mark.parametrize("fold", [False, True])
def test_starts_from_a_trained_network(fold: bool) -> None:
    trained = build("resnet20")
    network = inn(classes=10, shape=SHAPE, chain=Chain, fold=fold)
    warm_start(network, trained)
    images = torch.randn(2, *SHAPE)
    assert relative(network.eval()(images), trained(images)) <= 1e-5
    assert network.variation is not None
    assert network.variation.ratio < 1


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="the trained network is not the base"):
        warm_start(inn(classes=10, shape=SHAPE, chain=Chain), build("nin"))
    with pytest.raises(ValueError, match="not an integral network"):
        warm_start(build("nin"), build("nin"))
    with pytest.raises(ValueError, match="base='lenet': use resnetDEPTH"):
        inn(classes=10, shape=SHAPE, chain=Chain, base="lenet")
    with pytest.raises(ValueError, match="weights are for a base torchvision/NAME"):
        inn(classes=10, shape=SHAPE, chain=Chain, base="nin", weights="file.pth")
    check = FAMILIES["inn"].check
    good = {"base": "resnet20", "smallest": 0.5, "largest": 1.0}
    check(good, SHAPE)
    for changed, message in [
        ({"base": "resnet21"}, "depth=21"),
        ({"smallest": 1.2}, "more than largest"),
        ({"base": "x"}, "base='x'"),
    ]:
        with pytest.raises(ValueError, match=message):
            check(good | changed, SHAPE)


@pytest.mark.parametrize(
    ("base", "strategy", "sound"),
    [
        ("revnet38", "reversible", True),
        ("resnet20", "reversible", False),
        ("nin", "checkpointed", True),
        ("torchvision/resnet18", "budget", True),
        ("torchvision/resnet18", "reversible", False),
    ],
)
def test_strategies_are_the_bases(base: str, strategy: str, sound: bool) -> None:
    assert (caution({"name": "inn", "base": base}, strategy) is None) == sound
