"""Images of a size that a network does not take are refused before it sees one (case D14)."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

import memexp
from memexp import models
from memexp.backprop import Chain
from memexp.config import ConfigError
from memexp.memory import limit
from memexp.memory.fake import without_data
from memexp.models import sizes


@pytest.mark.parametrize(
    ("arch", "size", "message"),
    [
        (
            "vit_b_16",
            32,
            r"images of 32x32 \(Wrong image height.*\); it takes those of 224x224: set dataset\.image_size",
        ),
        ("alexnet", 32, "it takes those of at least 63x63"),
        ("alexnet", 62, "it takes those of at least 63x63"),
        ("squeezenet1_1", 16, "it takes those of at least 17x17"),
    ],
)
def test_d14_sizes_that_do_are_named(arch, size, message):
    def make():
        return models.create("torchvision", classes=3, shape=(3, size, size), chain=Chain, arch=arch)

    with pytest.raises(ValueError, match=message), torch.device("meta"):
        make()
    if arch == "squeezenet1_1":  # the smallest, as this takes its time
        with pytest.raises(ValueError, match=message), without_data():
            make()


def test_d14_the_least_size_that_does_is_taken():
    network = models.create("torchvision", classes=3, shape=(3, 63, 63), chain=Chain, arch="alexnet")
    assert network(torch.randn(1, 3, 63, 63)).shape == (1, 3)


@pytest.mark.parametrize("call", [memexp.estimate, memexp.build_model, memexp.run])
def test_d14_it_is_one_sentence_of_the_configuration(tmp_path, call):
    cfg = memexp.compose(["model=torchvision", "model.arch=squeezenet1_1", "dataset=digits", "dataset.image_size=16"])
    with pytest.raises(ConfigError, match="model: this network cannot take images of 16x16") as found:
        call(cfg, tmp_path) if call is memexp.run else call(cfg)
    assert len(found.value.problems) == 1


class Own(nn.Module):
    """Of 48 pixels alone. It keeps tensors of its last images, draws numbers, and counts its batches."""

    def __init__(self, wrong: str = "") -> None:
        super().__init__()
        self.bn, self.fc, self.offset = nn.BatchNorm2d(3), nn.Linear(3 * 48 * 48, 2), torch.zeros(1, 3, 1, 1)
        self.wrong, self.last = wrong, None

    def forward(self, images):
        if self.wrong == "always":
            raise RuntimeError("not of the size")
        self.last = self.bn(images + self.offset)
        if self.wrong == "value" and self.last.sum() > 0:
            return self.fc(self.last.flatten(1))
        return self.fc((self.last + torch.rand_like(self.last)).flatten(1))


def test_d14_a_users_own_network_is_tried_and_left_as_it_was():
    network = Own()
    before = {key: value.clone() for key, value in network.state_dict().items()}
    random = torch.get_rng_state()
    with pytest.raises(ValueError, match=r"images of 32x32 .*; it takes those of 48x48"):
        sizes.check(network, (3, 32, 32))
    sizes.check(network, (3, 48, 48))
    assert network.training
    assert network.last is None
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())


@pytest.mark.parametrize("network", [Own("always"), Own("value"), nn.Sequential(nn.Flatten(), nn.LazyLinear(2))])
def test_d14_what_fails_without_data_whatever_the_size_is_left_to_the_run(network):
    sizes.check(network, (3, 32, 32))


class Gives(nn.Module):
    """What `made` makes of its scores; where it is to read a value, meta tensors tell nothing."""

    def __init__(self, made, reads: bool) -> None:
        super().__init__()
        self.fc, self.made, self.reads = nn.Linear(3 * 8 * 8, 4), made, reads

    def forward(self, images):
        if self.reads and images.sum() > 1:
            raise RuntimeError("not these")
        return self.made(self.fc(images.flatten(1)))


@pytest.mark.parametrize("reads", [False, True])
@pytest.mark.parametrize(
    ("made", "classes", "message"),
    [
        (lambda scores: scores, 4, None),
        (lambda scores: scores, 3, "gives 4 scores an image, and the data set has 3 classes"),
        (lambda scores: scores, 10, "gives 4 scores an image, and the data set has 10 classes"),
        (lambda scores: scores[..., None], 4, "gives 4 x 1 scores an image"),
        (lambda scores: scores.sum(), 4, "gives no scores an image"),
        (lambda scores: {"logits": scores}, 4, "gives a dict; it must give a tensor"),
        (lambda scores: (scores, scores), 4, "gives a tuple; it must give a tensor"),
    ],
)
def test_what_gives_no_score_for_each_class_is_told_so(made, classes, message, reads):
    network = Gives(made, reads)
    if message is None:
        sizes.check(network, (3, 8, 8), classes)
        return
    with pytest.raises(ValueError, match=message):
        sizes.check(network, (3, 8, 8), classes)


ALONE = ["model=resnet", "model.units=[1,1,1,1]", "model.channels=[4,4,4,4,4]", "dataset.image_size=8", "device=cpu"]
ALONE += ["dataset.limit=20", "dataset.test_limit=10", "max_steps=1"]


def test_one_image_of_which_batch_normalisation_has_one_value_is_too_few(tmp_path, unestimated):
    cfg = memexp.compose([*ALONE, "batch_size=1"])
    for call in (memexp.estimate, lambda cfg: memexp.run(cfg, tmp_path / "alone")):
        with pytest.raises(ConfigError, match=r"^batch_size: 1 image at a time does not train this network.* set 2 or"):
            call(cfg)
    for enough in (["batch_size=2"], ["batch_size=1", "dataset.image_size=16"]):
        assert memexp.run(memexp.compose([*ALONE, *enough]), tmp_path / enough[0])["status"] == "done"
    there = [f"init_from={tmp_path / 'batch_size=2'}".replace("=2", r"\=2"), "stages=[evaluate]"]  # trains nothing
    assert memexp.run(memexp.compose([*ALONE, *there, "batch_size=1"]), tmp_path / "evaluated")["status"] == "done"


def test_what_fits_is_looked_for_from_two_images_on_where_one_is_too_few(monkeypatch):
    def trace(cfg, *_, **__):
        if cfg.batch_size == 1:
            raise ConfigError(["batch_size: 1 image at a time does not train this network"])
        return SimpleNamespace(report=SimpleNamespace(peak=100 * cfg.batch_size, macs_forward=1, macs_backward=2))

    monkeypatch.setattr(limit, "trace", trace)
    monkeypatch.setattr(limit, "_strategies", lambda cfg: ["stored"])
    cfg = memexp.compose([*ALONE, "batch_size=4"])
    assert limit.answer(cfg, 1000, [{}]).batch == 10
    with pytest.raises(ConfigError, match=r"at batch_size=2; use a smaller network"):
        limit.answer(cfg, 199, [{}])


def test_a_function_that_holds_the_network_is_tried_with_the_copy():
    """Else what is tried would be a forward of the network itself in train mode, which counts in its statistics."""
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4 * 6 * 6, 5))
    network.forward = lambda x, forward=network.forward: forward(x)
    sizes.check(network, (3, 8, 8), 5)
    sizes.check_alone(network, (3, 8, 8))
    assert int(network[1].num_batches_tracked) == 0
    with pytest.raises(ValueError, match="this network gives 5 scores an image"):
        sizes.check(network, (3, 8, 8), 6)
