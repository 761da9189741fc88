"""The size of an integral network that meets a target."""

import pytest
import torch
from integral_networks import build

from memexp.integral import convert
from memexp.integral.partition import Partition
from memexp.integral.sizing import sizes_for
from memexp.memory.meter import macs_per_image


def parameters(network: torch.nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


@pytest.mark.parametrize("left", [0.3, 0.6, 0.9])
def test_the_nearest_share_is_found(left: float) -> None:
    network = convert(build("resnet20"), torch.randn(1, 3, 32, 32))
    whole = parameters(network.discretize(1.0))
    sizes = sizes_for(network, left, parameters)
    assert parameters(network.discretize(sizes)) / whole == pytest.approx(left, rel=0.01)
    shares = [n / network.groups[name] for name, n in sizes.items()]
    assert shares == pytest.approx([left**0.5] * len(shares), abs=0.07)  # a convolution's weights fall with the square


def test_a_target_that_whole_channels_cannot_meet_is_refused() -> None:
    network = convert(
        torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.ReLU(), torch.nn.Linear(3, 2)), torch.randn(1, 4)
    )
    with pytest.raises(ValueError, match=r"0\.9 of the native size cannot be met within 2%"):
        sizes_for(network, 0.9, parameters)


def test_adds_multiplies_are_the_plain_networks_at_every_size_and_at_trained_nodes() -> None:
    network, shape = convert(build("resnet20"), torch.randn(1, 3, 32, 32)), (3, 32, 32)
    for sizes in (None, 0.5):
        network.resize(sizes)
        assert macs_per_image(network, shape) == macs_per_image(network.discretize(), shape)
    network.resize()
    network.train_partitions(0.5)
    assert macs_per_image(network, shape) == macs_per_image(network.discretize(), shape)
    assert sum(isinstance(module, Partition) for module in network.modules()) > 0  # the network is left as it was
