"""A network whose forward reads attributes of its layers is fused as far as it still runs, and no further in silence."""

from dataclasses import dataclass
from types import MethodType

import pytest
import torch
from fusing_networks import settled
from torch import Tensor, nn

from memexp import fusing, integral
from memexp.fusing import fused

READS = {
    "weight": lambda net, y: y.to(net.b.weight.dtype),
    "statistics": lambda net, y: y + 0 * net.b.running_mean.shape[0],
    "a number": lambda net, y: y * (1 + 0 * net.b.eps),
    "width": lambda net, y: y.view(-1, net.b.num_features, *y.shape[2:]),
}


class Asks(nn.Module):
    def __init__(self, reads) -> None:
        super().__init__()
        self.c, self.b, self.d, self.e = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 4, 1), nn.BatchNorm2d(4)
        self.reads = reads

    def forward(self, x: Tensor) -> Tensor:
        return self.e(self.d(torch.relu(self.reads(self, self.b(self.c(x))))))


@pytest.mark.parametrize("case", READS)
def test_a_normalisation_that_is_read_stays(case):
    torch.manual_seed(0)
    network, x = settled(Asks(READS[case])), torch.randn(2, 3, 6, 6)
    norm = network.b
    assert fusing.folds(network, x) == [["d", "e"]]
    assert network.b is norm
    result = fusing.fuse(network, x, "none")
    assert result.edits == [{"kind": "fold", "pairs": [["d", "e"]]}]
    assert type(result.network.b) is nn.BatchNorm2d
    assert result.error <= 1e-5


def test_converted_with_a_normalisation_that_is_read():
    torch.manual_seed(0)
    network = settled(Asks(READS["weight"]))
    assert integral.convert(network, torch.randn(2, 3, 6, 6)).groups == {"c": 8}


@pytest.mark.parametrize(
    ("reads", "told"),
    [
        (lambda row: row[0].weight, r"'Identity' object has no attribute 'weight'"),
        (lambda row: row[1][0], "'Conv2d' object is not subscriptable"),
        (lambda row: row[1].get_parameter("0.weight"), "Conv2d has no attribute `0`"),
    ],
)
def test_a_merged_layer_that_is_read_is_said(reads, told):
    class Row(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            reads(self)
            return super().forward(x)

    network = Row(nn.Conv2d(3, 4, 1), nn.Sequential(nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 1)), nn.ReLU()).eval()
    x = torch.randn(2, 3, 6, 6)
    assert fusing.fuse(network, x, "none").edits == []
    with pytest.raises(fusing.FusingError, match=rf"reads of a layer what is gone: {told}.*merge=none"):
        fusing.fuse(network, x, "all")


def test_a_convolution_that_is_read_does_not_grow():
    torch.manual_seed(0)

    class Sized(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x).view(len(x), self[0].out_channels, -1)

    network, x = settled(Sized(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3))), torch.randn(2, 3, 6, 6)
    assert fusing.growable(network, x) == ["2"]
    assert fusing.grow(network, [x]).edits[0]["layers"] == ["2"]
    with pytest.raises(
        ValueError, match=r"grow: 0: the network reads what only .* 'out_channels'\): leave it out of lay"
    ):
        fusing.grow(network, [x], layers=["0", "2"])


REPLACED = {"a convolution": 0, "its normalisation": 1, "an activation": 2, "one in a row": 4}


@pytest.mark.parametrize("merge", ["none", "all"])
@pytest.mark.parametrize("case", REPLACED)
def test_a_layer_whose_forward_was_replaced_is_no_layer(case, merge):
    """As some libraries do to a layer that is there: its type says no longer what it computes."""
    torch.manual_seed(0)
    row = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 3), nn.Tanh()
    network = settled(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), *row))
    layer = network[REPLACED[case]]
    layer.forward = MethodType(lambda self, x: type(self).forward(self, x).sin(), layer)
    result = fusing.fuse(network, torch.randn(2, 3, 6, 6), merge)
    assert result.error <= 1e-5
    gone = sum(type(module) is nn.Identity for module in result.network)
    assert gone == (case in ("an activation", "one in a row")) + (merge == "all" and case != "one in a row")


@pytest.mark.parametrize(
    "inputs", [(torch.full((2, 3, 6, 6), 200, dtype=torch.uint8),), (torch.tensor(2.0), torch.ones(2, 3, 6, 6))]
)
def test_the_fastest_is_measured_whatever_the_network_is_given(inputs, untimed):
    class Scaled(nn.Sequential):
        def forward(self, *inputs: Tensor) -> Tensor:
            return super().forward(inputs[-1] / inputs[0].max())

    network = Scaled(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 3), nn.ReLU()).eval()
    assert fusing.fuse(network, inputs, "auto").error <= 1e-5


@dataclass
class Scores:
    y: Tensor
    parts: list["Scores"]


def test_outputs_in_a_dataclass_are_compared():
    class Found(nn.Sequential):
        def forward(self, x: Tensor) -> Scores:
            return Scores(super().forward(x), [Scores(x, [])])

    network, x = settled(Found(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))), torch.randn(2, 3, 6, 6)
    assert list(fused.outputs(network, x)) == ["y", "parts_0_y"]
    found = fusing.fuse(network, x)
    assert type(found.network[1]) is nn.Identity
    with torch.no_grad():
        network[0].weight.mul_(2)
    with pytest.raises(fusing.FusingError, match="outputs differ"):
        fusing.check(network, found.network, [x])


class Opaque:
    def __init__(self, y: Tensor) -> None:
        self.y = y


def test_outputs_that_cannot_be_compared_are_refused():
    class Boxed(nn.Conv2d):
        def forward(self, x: Tensor) -> Opaque:
            return Opaque(super().forward(x))

    with pytest.raises(ValueError, match="scores is a Opaque, whose tensors cannot be compared"):
        fusing.fuse(Boxed(3, 4, 3).eval(), torch.randn(2, 3, 6, 6))


def test_rounding_is_that_of_real_numbers():
    """A mask that float64 decides otherwise does not allow the scores beside it to differ."""

    class Masked(nn.Module):
        def __init__(self, scale: float) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.tensor(scale))

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return x * self.scale, x.sum() > 2**24

    x = torch.tensor([2.0**24, 1.0])  # their sum is no float32
    with pytest.raises(fusing.FusingError, match="differ"):
        fusing.check(Masked(1.0), Masked(1.001), [x])
