"""Parameter counts of the papers, exact; layouts; weights; a user's own network."""

from functools import partial

import pytest
import torch
import torchvision
from torch import nn

import memexp
from memexp import models
from memexp.backprop import Chain
from memexp.config import ConfigError
from memexp.models import families

CIFAR, IMAGENET = (3, 32, 32), (3, 224, 224)


def parameters(name: str, classes: int, shape: tuple[int, int, int], **settings) -> int:
    with torch.device("meta"):
        network = models.create(name, classes=classes, shape=shape, chain=Chain, **settings)
    return sum(p.numel() for p in network.parameters())


# spec: Gomez et al. 2017, tables 1 and 3, with the counts that their block details come to
@pytest.mark.parametrize(
    ("name", "depth", "classes", "count"),
    [
        ("resnet", 32, 10, 464_154),
        ("resnet", 32, 100, 470_004),
        ("revnet", 38, 10, 464_890),
        ("revnet", 38, 100, 475_060),
        ("resnet", 110, 10, 1_727_962),
        ("resnet", 110, 100, 1_733_812),
        ("revnet", 110, 10, 1_729_194),
        ("revnet", 110, 100, 1_740_804),
        ("resnet", 164, 10, 1_703_258),
        ("resnet", 164, 100, 1_726_388),
        ("revnet", 164, 10, 1_748_778),
        ("revnet", 164, 100, 1_794_948),
    ],
)
def test_parameters_on_cifar(name, depth, classes, count):
    assert parameters(name, classes, CIFAR, depth=depth) == count


@pytest.mark.parametrize(
    ("name", "depth", "count"),
    [("resnet", 50, 25_549_352), ("resnet", 101, 44_541_480), ("revnet", 56, 27_553_128), ("revnet", 104, 45_428_072)],
)
def test_parameters_on_imagenet(name, depth, count):
    assert parameters(name, 1000, IMAGENET, depth=depth) == count


def test_vgg16_has_the_names_and_shapes_of_torchvisions():
    assert parameters("vgg16", 1000, IMAGENET) == 138_357_544
    with torch.device("meta"):
        ours = models.create("vgg16", classes=1000, shape=IMAGENET, chain=Chain).state_dict()
        theirs = torchvision.models.vgg16().state_dict()
    assert {key: t.shape for key, t in ours.items()} == {key: t.shape for key, t in theirs.items()}


@pytest.mark.long
def test_vgg16_with_torchvisions_weights_gives_torchvisions_scores(tmp_path):
    torch.manual_seed(0)
    theirs = torchvision.models.vgg16().eval()
    torch.save(theirs.state_dict(), tmp_path / "vgg16.pth")
    ours = models.create("vgg16", classes=1000, shape=IMAGENET, chain=Chain, weights=str(tmp_path / "vgg16.pth")).eval()
    (tmp_path / "vgg16.pth").unlink()  # half a gigabyte
    images = torch.randn(1, *IMAGENET)
    with torch.no_grad():
        torch.testing.assert_close(ours(images), theirs(images), rtol=1e-4, atol=1e-4)


def test_vgg16_for_cifar_has_the_small_head():
    assert parameters("vgg16", 10, CIFAR) == 14_987_210


def test_weights_come_from_a_local_file_and_a_new_head_is_fresh(tmp_path):
    torch.manual_seed(0)
    trained = torchvision.models.resnet18(num_classes=7)
    torch.save(trained.state_dict(), tmp_path / "w.pt")
    settings = {"arch": "resnet18", "weights": str(tmp_path / "w.pt")}
    network = models.create("torchvision", classes=10, shape=CIFAR, chain=Chain, **settings)
    assert torch.equal(network.conv1.weight, trained.conv1.weight)
    assert network.fc.weight.shape == (10, 512)
    (tmp_path / "w.pt").write_bytes(b"not weights")
    with pytest.raises(ValueError, match=r"w\.pt cannot be read"):
        models.create("torchvision", classes=10, shape=CIFAR, chain=Chain, **settings)


def test_a_file_that_would_run_code_is_refused(tmp_path):
    class Attack:
        def __reduce__(self):
            return (exec, ("raise SystemExit('code from a file was run')",))

    torch.save({"model": Attack()}, tmp_path / "w.pt")
    with pytest.raises(ValueError, match=r"w\.pt cannot be read"):
        models.create("vgg16", classes=10, shape=CIFAR, chain=Chain, weights=str(tmp_path / "w.pt"))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["model=resnet", "model.depth=33"], r"depth=33 is not a ResNet .*nearest: .*32"),
        (["model=revnet", "model.depth=37"], r"depth=37 is not a RevNet .*nearest: .*38"),
        (["model=revnet", "model.depth=60", "dataset=imagenet"], r"depth=60 .*large images: 56, 104"),
        (["model=revnet", "model.units=[2]", "model.channels=[8,9]"], r"\[9\] cannot be halved"),
        (["model=resnet", "model.units=[2]", "model.channels=[8]"], "one more channel figure"),
        (["model=torchvision", "model.arch=resnet19"], r"nearest: .*resnet18"),
        (["model=vgg16", "dataset.image_size=16"], "smaller than 32x32"),
    ],
)
def test_sizes_that_cannot_work_are_explained(overrides, message):
    with pytest.raises(ConfigError, match=message):
        memexp.build_model(memexp.compose(overrides))


@pytest.mark.parametrize("backprop", ["stored", "checkpointed"])
@pytest.mark.parametrize(("name", "settings"), [("resnet", {"depth": 14}), ("revnet", {"depth": 20}), ("vgg16", {})])
def test_a_network_learns_from_images_with_one_body(name, settings, backprop):
    network = models.create(name, classes=7, shape=CIFAR, chain=partial(Chain, backprop=backprop), **settings)
    scores = network(torch.randn(2, *CIFAR))
    assert scores.shape == (2, 7)
    scores.square().sum().backward()
    assert all(p.grad is not None for p in network.parameters())
    assert sum(isinstance(module, Chain) for module in network.modules()) == 1


def own_network(classes: int, chain, width: int) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, width), chain([nn.Linear(width, width)]), nn.ReLU())


def test_a_users_own_network_gets_what_it_asks_for():
    target = f"{__name__}.own_network"
    network = models.create(classes=5, shape=CIFAR, chain=Chain, _target_=target, width=5)
    assert network(torch.randn(2, *CIFAR)).shape == (2, 5)
    with pytest.raises(ValueError, match="takes no widht"):
        models.create(classes=5, shape=CIFAR, chain=Chain, _target_=target, widht=5)
    with pytest.raises(ValueError, match="cannot be imported"):
        models.create(classes=5, shape=CIFAR, chain=Chain, _target_="nowhere.network")


@pytest.mark.parametrize(("base", "count"), [("nin", 966_986), ("vgg11", 9_491_530), ("resnet20", 269_722)])
def test_the_discrete_network_of_an_integral_one_is_a_family(base, count):
    assert parameters("discrete", 10, CIFAR, base=base) == count
    with pytest.raises(ConfigError, match="base='resnet21x'"):
        memexp.compose(["model=discrete", "model.base=resnet21x"])


def test_vgg16_of_a_quarter_of_the_width():
    assert parameters("vgg16", 10, CIFAR, width=0.25) == 939_770


@pytest.mark.parametrize("size", [9, 33, 70])
@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("resnet", {"depth": 8, "units": [1, 1, 1], "channels": [4, 4, 8, 8]}),
        ("revnet", {"depth": 8, "units": [1, 1, 1], "channels": [4, 4, 8, 8]}),
        ("revnet", {"depth": 8, "units": [1, 1, 1], "channels": [4, 4, 8, 8], "bottleneck": True}),
        ("resnet", {"depth": 8, "units": [1, 1, 1], "channels": [4, 4, 8, 8], "kind": "ode"}),
        ("reducenet", {"depth": 8}),
        ("reducenet", {"depth": 8, "padding": "once"}),
        ("inn", {"base": "resnet8"}),
        ("discrete", {"base": "nin"}),
    ],
)
def test_images_of_a_side_that_strides_do_not_divide_are_taken(name, settings, size):
    """The average pool of a basic unit's shortcut left one row less than the convolution beside it."""
    if name == "inn" and size > 64:
        settings = {"base": "nin"}
    network = models.create(name, classes=3, shape=(3, size, size), chain=Chain, **settings).eval()
    assert network(torch.randn(2, 3, size, size)).shape == (2, 3)


@pytest.mark.parametrize("model", ["discrete", "inn"])
@pytest.mark.parametrize(
    ("family", "base"),
    [("resnet", "resnet20"), ("revnet", "revnet38"), ("vgg16", "vgg11"), ("torchvision", "torchvision/resnet18")],
)
def test_a_network_over_a_base_takes_the_strategies_of_that(model, family, base):
    known = families.FAMILIES[family].strategies
    sound = set(known) - {"adjoint"}  # which is the failure case of such a ResNet
    assert set(families.proposed({"name": model, "base": base}, ())) == sound
