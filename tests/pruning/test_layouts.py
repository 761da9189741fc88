"""Activations are read channel by channel and sample by sample, in whatever layout a network computes; else it is refused."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from memexp.pruning import CRITERIA, Settings, prune, remove

READERS = ["apoz", "entropy", "taylor_activation", "fisher", "skeletonization"]
RANDOM = torch.Generator().manual_seed(0)
SEQUENCES = torch.randn(4, 8, 5, generator=RANDOM)  # 8 moments for 8 channels
IMAGES = torch.randn(8, 3, 8, 8, generator=RANDOM)  # 8 samples and planes of 8 x 8 for 8 channels


class Between(nn.Module):
    """A layer of 8 channels, `middle`, and a layer that reads them."""

    def __init__(self, kind, middle, module=None) -> None:
        super().__init__()
        torch.manual_seed(0)
        linear = kind is nn.Linear
        self.a = nn.Linear(5, 8) if linear else nn.Conv2d(3, 8, 3, padding=1)
        self.b = nn.Linear(8, 4) if linear else nn.Conv2d(8, 4, 1)
        self.middle, self.module = middle, module
        self.over = 1 if linear else (2, 3)

    def forward(self, x):
        return self.b(self.middle(self.a(x))).mean(self.over)


def scored(network, criterion, x, settings=None):
    data = [(x[:3], torch.arange(3) % 4), (x[3:], torch.arange(len(x) - 3) % 4)]
    (group,) = remove(network.eval(), x, criterion, settings or Settings(ratio=0.5), data=data).groups
    return torch.tensor(group["scores"])


LINEAR = {
    "transpose": lambda y: torch.relu(y.transpose(1, 2)).transpose(1, 2),
    "swapaxes": lambda y: y.swapaxes(1, 2).relu().swapaxes(1, 2),
    "mT": lambda y: functional.relu(y.mT).mT,
    "movedim": lambda y: y.movedim(2, 0).relu().movedim(0, 2),
    "permute": lambda y: y.permute(1, 2, 0).relu().permute(2, 0, 1),
    "time first": lambda y: y.transpose(0, 1).relu().transpose(0, 1),
    "in place": lambda y: y.transpose(1, 2).contiguous().relu_().transpose(1, 2),
    "dtype": lambda y: y.double().relu().float(),
    "same shape": lambda y: y.reshape(y.shape)[:].relu(),
    "norm over time": lambda y: functional.layer_norm(y.transpose(1, 2) * 1, (8,)).transpose(1, 2).relu(),
}
CONVOLUTION = {
    "channels last": lambda y: y.permute(0, 2, 3, 1).relu().permute(0, 3, 1, 2),
    "transposed plane": lambda y: y.mT.relu().mT,
    "one row": lambda y: y.transpose(0, 1).relu().transpose(0, 1),
    "pool": lambda y: functional.max_pool2d(y, 3, 1, 1).relu(),
    "dropout": lambda y: functional.dropout2d(y, training=False).relu(),
}
PLAIN = {
    "norm over time": lambda y: torch.relu(functional.layer_norm(y.mT, (8,)).mT),
    "pool": lambda y: functional.relu(functional.max_pool2d(y, 3, 1, 1)),
}
CASES = [(nn.Linear, name) for name in LINEAR] + [(nn.Conv2d, name) for name in CONVOLUTION]


@pytest.mark.parametrize("criterion", READERS)
@pytest.mark.parametrize(("kind", "name"), CASES)
def test_the_same_function_has_the_same_scores(kind, name, criterion):
    middle, x = (LINEAR[name], SEQUENCES) if kind is nn.Linear else (CONVOLUTION[name], IMAGES)
    seen = []

    def noted(y):  # by hand, where the activation is in the layer's own layout
        seen.append(middle(y).detach())
        return middle(y)

    found = scored(Between(kind, middle), criterion, x)
    torch.testing.assert_close(found, scored(Between(kind, PLAIN.get(name, torch.relu)), criterion, x))
    if criterion == "apoz":
        network = Between(kind, noted)
        network(x)
        alive = (seen[0] != 0).double().movedim(2 if kind is nn.Linear else 1, 0).flatten(1).mean(1)
        torch.testing.assert_close(found.double(), alive, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    "middle",
    [
        lambda y: functional.channel_shuffle(y, 2).relu(),
        lambda y: y.roll(1, 1).relu(),
        lambda y: y.flip(1).relu(),
        lambda y: y.cumsum(1).relu(),
        lambda y: y.flatten(1).view(y.shape).relu(),
        lambda y: y.reshape(len(y), 8, 64).mT.reshape(y.shape).relu(),
        lambda y: (y.permute(0, 2, 3, 1) + y).relu(),
    ],
)
def test_what_moves_numbers_within_is_not_followed(middle):
    """The layer's own output is read, and apoz has none to count zeros in; where the sum couples all, nothing can go."""
    with pytest.raises(ValueError, match=r"none follows layer a|no layer of this network has channels"):
        scored(Between(nn.Conv2d, middle), "apoz", IMAGES)


@pytest.mark.parametrize("criterion", ["taylor_activation", "fisher", "skeletonization"])
def test_before_a_shuffle_products_are_as_behind_it(criterion):
    """A ReLU of a number times its gradient is the number times its own: a dL/da is the same on both sides."""
    behind, before = (
        scored(Between(nn.Conv2d, middle), criterion, IMAGES, Settings(ratio=0.25))
        for middle in (
            lambda y: functional.channel_shuffle(y, 2).relu(),
            lambda y: functional.channel_shuffle(y.relu(), 2),
        )
    )
    torch.testing.assert_close(behind, before)


class TimeFirst(nn.Module):
    """(samples, time, 5), computed time first."""

    def __init__(self, relu=True) -> None:
        super().__init__()
        self.a, self.b, self.relu = nn.Linear(5, 8), nn.Linear(8, 4), relu

    def forward(self, x):
        y = self.a(x.transpose(0, 1))
        return self.b(y.relu() if self.relu else y.tanh()).mean(0)


class OneByOne(nn.Module):
    """A convolution of each sample by itself, whose rows are channels."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 1)

    def forward(self, x):
        return torch.stack([self.b(self.a(image).relu()).mean((1, 2)) for image in x])


class FixedBatch(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 1)

    def forward(self, x):
        return self.b(self.a(x).relu()).view(8, 4, 36).mean(2)


class Functional(nn.Module):
    """No layer is a module of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Parameter(torch.randn(8, 3, 3, 3)), nn.Parameter(torch.randn(4, 8, 1, 1))

    def forward(self, x):
        return functional.conv2d(functional.conv2d(x, self.a).relu(), self.b).mean((2, 3))


@pytest.mark.parametrize("criterion", READERS)
@pytest.mark.parametrize(
    ("network", "x", "message"),
    [
        (TimeFirst(), SEQUENCES, "layer a has an activation of 8 rows for . samples"),
        (TimeFirst(), SEQUENCES.repeat(2, 1, 1), "layer a has an activation of 8 rows for . samples"),  # as many
        (TimeFirst(), SEQUENCES[:, :2], "layer a has an activation of 2 rows for . samples"),
        (TimeFirst(relu=False), SEQUENCES[:, :3], "layer a has an activation of 3 rows for . samples"),
        (OneByOne(), IMAGES, "layer a never gave an activation of its own"),
        (FixedBatch(), IMAGES, r"cannot be called with 2 samples \(.*\), and to tell them apart"),
        (Functional(), IMAGES, "never gave an activation of its own"),
    ],
)
def test_samples_that_are_not_the_rows_are_refused(network, x, message, criterion):
    data = [(x, torch.zeros(len(x), dtype=torch.long))]
    if criterion == "apoz" and message.startswith("layer a has") and not network.relu:
        message += "|none follows layer a"
    with pytest.raises(ValueError, match=message) as error:
        prune(network, x, criterion=criterion, ratio=0.5, data=data)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("activation", "counts"),
    [
        (nn.ReLU(), True),
        (nn.ReLU6(), True),
        (nn.Hardswish(), True),
        (nn.Hardtanh(0, 0.5), True),
        (nn.Hardtanh(-1, 0), True),
        (nn.Hardtanh(0, 1, inplace=True), True),
        (nn.Threshold(0.1, 0), True),
        (nn.Hardtanh(), False),
        (nn.Hardtanh(-1, 1, inplace=True), False),
        (nn.Hardtanh(0.1, 1), False),
        (nn.Threshold(0.1, 0.5), False),
        (nn.Threshold(0, -1), False),
    ],
)
def test_zeros_are_counted_where_a_functions_bounds_make_some(activation, counts):
    if not counts:
        with pytest.raises(ValueError, match="apoz counts zeros after a ReLU, and none follows layer a"):
            scored(Between(nn.Linear, activation), "apoz", SEQUENCES)
        scored(Between(nn.Linear, lambda y: activation(y).relu()), "apoz", SEQUENCES)
        return
    network = Between(nn.Linear, activation)
    alive = (activation(network.a(SEQUENCES)) != 0).double().mean((0, 1))
    torch.testing.assert_close(scored(network, "apoz", SEQUENCES).double(), alive, rtol=1e-6, atol=1e-6)


class TwoInputs(nn.Module):
    """Two inputs, or both in one."""

    def __init__(self, split) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.c, self.split = nn.Linear(4, 8), nn.Linear(5, 8), nn.Linear(8, 3), split

    def forward(self, x, y=None):
        if self.split:
            x, y = x.split([4, 5], 1)
        return self.c(torch.relu(self.a(x) + self.b(y)))


@pytest.mark.parametrize("criterion", [name for name in CRITERIA if name != "bn_scale"])
@pytest.mark.parametrize("form", [tuple, list])
def test_a_network_of_several_inputs_takes_as_many_from_the_data(criterion, form):
    x, targets = torch.randn(6, 9, generator=torch.Generator().manual_seed(0)), torch.arange(6) % 3
    parts = form(x.split([4, 5], 1))
    one = remove(TwoInputs(True), x, criterion, Settings(ratio=0.5), data=[(x, targets)]).groups
    two = remove(TwoInputs(False), parts, criterion, Settings(ratio=0.5), data=[(parts, targets)], check_on=parts)
    torch.testing.assert_close(two.groups[0]["scores"], one[0]["scores"], rtol=1e-4, atol=1e-9)
