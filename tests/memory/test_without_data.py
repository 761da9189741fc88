"""What a network is without data is what it is with: constructors that read values, copies, recurrent layers, attention."""

from contextlib import nullcontext

import pytest
import torch
import torchvision
from torch import nn

import memexp
from memexp.config import ConfigError
from memexp.memory import flops
from memexp.memory.fake import emptied, without_data
from memexp.memory.meter import macs_per_image
from memexp.memory.tracker import Tracker, track
from memexp.report.layers import summarise


class Sequences(nn.Module):
    """Takes the rows of an image for a sequence of 48 numbers."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, images):
        found = self.body(images.flatten(2).transpose(1, 2)[..., :3].flatten(1).view(len(images), -1, 48))
        return (found[0] if isinstance(found, tuple) else found).mean(1)


class Masked(nn.Module):
    def __init__(self, classes: int) -> None:
        super().__init__()
        self.head = nn.Linear(1, classes)

    def forward(self, images):
        return self.head(images[images > 0].mean().expand(len(images), 1))


def encoder() -> nn.Module:
    return nn.TransformerEncoder(nn.TransformerEncoderLayer(48, 4, 64, batch_first=True), 2)


def classifier(arch: str):
    return lambda: torchvision.models.get_model(arch, weights=None, num_classes=10)


NETWORKS = {
    "d1 regnet": classifier("regnet_y_400mf"),
    "d2 encoder": lambda: Sequences(encoder()),
    "d3 lstm": lambda: Sequences(nn.LSTM(48, 20, batch_first=True)),
    "d3 lstm both ways": lambda: Sequences(nn.LSTM(48, 20, num_layers=2, bidirectional=True, batch_first=True)),
    "d3 gru": lambda: Sequences(nn.GRU(48, 20)),
    "d12 mnasnet": classifier("mnasnet0_5"),
}


def followed(make, fake: bool):
    network = make()
    with without_data() if fake else nullcontext():
        if fake:
            network = emptied(network)
        optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
        tracker = Tracker(network, optimizer)
        for _ in range(2):
            images = torch.randn(2, 3, 32, 32)
            tracker.add_inputs([images])
            with tracker:
                network(images).sum().backward()
                optimizer.step()
                optimizer.zero_grad()
    return tracker.report(), sum(p.numel() for p in network.parameters())


@pytest.mark.parametrize("name", NETWORKS)
def test_d1_d2_d3_as_on_real_tensors(name):
    (real, count), (fake, also) = followed(NETWORKS[name], False), followed(NETWORKS[name], True)
    assert count == also
    assert real.as_dict() == fake.as_dict()
    assert real.macs_forward > 0
    assert real.uncounted == ()
    assert (
        1.1 < real.macs_backward / real.macs_forward < 2.3
    )  # less than 2 where a first layer's inputs need no gradient


def test_d1_a_constructor_that_reads_values():
    overrides = ["model=torchvision", "model.arch=regnet_y_400mf", "dataset=imagenet", "batch_size=2"]
    assert memexp.estimate(memexp.compose(overrides))["parameters"] == 4_344_144


@pytest.mark.parametrize("training", [True, False])
def test_d12_macs_of_attention_as_by_hand(training):
    network, x = encoder().train(training), torch.zeros(3, 7, 48)
    with torch.no_grad():
        found = track(lambda: network(x)).macs_forward
    assert found == 2 * 3 * (7 * (4 * 48 * 48 + 2 * 48 * 64) + 2 * 7 * 7 * 48)


@pytest.mark.parametrize("kernel", ["flash", "efficient", "cudnn"])
def test_flops_of_grouped_attention_on_a_gpu_as_by_hand(kernel):
    query, key, value, grad = (torch.empty(2, *shape) for shape in ((8, 5, 6), (2, 7, 6), (2, 7, 4), (8, 5, 4)))
    forward = getattr(torch.ops.aten, f"_scaled_dot_product_{kernel}_attention").default
    backward = getattr(torch.ops.aten, f"_scaled_dot_product_{kernel}_attention_backward").default
    scores = 2 * 2 * 8 * 5 * 7
    assert flops.count(forward, (query, key, value), {}, None) == scores * (6 + 4)
    assert flops.count(backward, (grad, query, key, value), {}, None) == scores * (3 * 6 + 2 * 4)


def test_macs_of_a_bilinear_layer_as_by_hand():
    layer = nn.Bilinear(8, 5, 6)
    assert track(lambda: layer(torch.zeros(4, 8), torch.zeros(4, 5)), layer).macs_forward == 4 * 6 * 8 * 5


def test_d12_macs_of_a_recurrent_layer_as_by_hand():
    layer, x = nn.LSTM(12, 20), torch.zeros(5, 3, 12)
    report = track(lambda: layer(x)[0].sum().backward(), layer)
    assert (report.macs_forward, report.macs_backward) == (5 * 3 * 80 * 32, 2 * 5 * 3 * 80 * 32)


@pytest.mark.parametrize("groups", [1, 4, 8])
@pytest.mark.parametrize("kind", [nn.Conv2d, nn.ConvTranspose2d])
def test_d12_backward_of_a_convolution_is_twice_its_forward(kind, groups):
    layer, x = kind(8, 8, 3, padding=1, groups=groups), torch.zeros(2, 8, 6, 6, requires_grad=True)
    report = track(lambda: layer(x).sum().backward(), layer)
    assert report.macs_forward == 2 * 36 * 9 * 8 * 8 // groups
    assert report.macs_backward == 2 * report.macs_forward


class Keeping(nn.Module):
    """Keeps what it was given last, in all ways."""

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.ReLU())
        self.head = nn.Linear(4, classes)
        self.last: object = None
        self.seen: list[object] = []

    def forward(self, images):
        self.last, self.by_name = images, {"features": self.body(images)}
        self.seen.append(images)
        return self.head(self.by_name["features"].mean((2, 3)))


@pytest.mark.parametrize("look", [macs_per_image, summarise])
def test_a_network_that_is_counted_without_data_keeps_nothing_of_it(look):
    """A budget of such a network ended in an error of torch's, as what it had kept had no values to compare."""
    network = Keeping()
    network(torch.zeros(2, 3, 8, 8))
    last, seen, by_name = network.last, [*network.seen], dict(network.by_name)
    look(network, (3, 8, 8))
    assert network.last is last
    assert [*map(id, network.seen)] == [*map(id, seen)]
    assert network.by_name == by_name
    with without_data():
        bare = emptied(Keeping())
    bare.last = next(bare.parameters()).detach()
    look(bare, (3, 8, 8))  # which has no values to note


def test_d12_vit_as_published():
    with torch.device("meta"):
        network = torchvision.models.vit_b_16()
    assert macs_per_image(network.to_empty(device="cpu"), (3, 224, 224)) == pytest.approx(17.56e9, rel=2e-3)


def test_d12_an_operation_without_formula_is_named():
    report = track(lambda: torch.linalg.qr(torch.eye(3)))
    assert report.uncounted == ("aten.linalg_qr",)


def test_d4_a_shape_that_depends_on_values_is_refused_by_name():
    def follow() -> None:
        with without_data():
            emptied(Masked(10))(torch.randn(2, 3, 8, 8))

    with pytest.raises(ConfigError, match=r"aten\.\w+.* depends on values"):
        follow()
    assert macs_per_image(Masked(10), (3, 8, 8)) == 10  # by a real image


def test_a_value_that_the_network_reads_is_known_or_said():
    with without_data() as read:
        assert int(torch.tensor(4)) == 4
        assert read == []
        assert float(torch.randn(())) == 0
    assert len(read) == 1
    assert read[0].startswith("test_without_data.py:")


def test_a_batch_norm_that_averages_over_all_batches_reads_a_first_one():
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8, momentum=None), nn.ReLU())
    with without_data() as read:
        emptied(network)(torch.randn(2, 3, 8, 8)).sum().backward()
    assert read == []


def test_a_division_by_a_value_that_is_not_there_is_one_sentence():
    with pytest.raises(ConfigError, match=r"divides by a value read at test_without_data.py:\d+"), without_data():
        1 / torch.randn(()).item()
    with pytest.raises(ZeroDivisionError), without_data():
        1 / torch.tensor(0).item()


def test_what_torch_cannot_do_without_data_is_raised_and_not_printed_beside(capfd):
    with pytest.raises(RuntimeError, match="mat_a"), without_data():
        torch._grouped_mm(torch.ones(2, 8, 8), torch.ones(2, 8, 8))
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("same", [True, False])
def test_statistics_of_normalisations_are_in_the_type_in_which_the_kernels_keep_them(half, same):
    aten, weights = torch.ops.aten, half if same else torch.float32

    def types():
        x, w = torch.zeros(4, 8, dtype=half), torch.ones(8, dtype=weights)
        return [
            [t.dtype for t in aten.native_layer_norm(x, (8,), w, w, 1e-5)],
            [t.dtype for t in aten.native_group_norm(x.view(1, 4, 8), w[:4], w[:4], 1, 4, 8, 2, 1e-5)],
            [t.dtype for t in aten.native_batch_norm(x, w, w, None, None, True, 0.1, 1e-5)],
        ]

    expected = types()
    with without_data():
        assert types() == expected
