"""Weights that hooks make of parameters, and what modules say of their widths then."""

from collections.abc import Callable

import equality
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune, spectral_norm, weight_norm

from memexp import channels
from memexp.pruning import prune as prune_channels
from memexp.pruning.filters import layers

MAKERS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "plain": lambda layer: layer,
    "weight_norm": weight_norm,
    "parametrised weight_norm": parametrizations.weight_norm,
    "pruned": lambda layer: prune.l1_unstructured(layer, "weight", 0.3),
    "pruned twice": lambda layer: prune.random_unstructured(prune.l1_unstructured(layer, "weight", 0.3), "weight", 0.3),
}
MIDDLES: dict[str, Callable[[], nn.Module]] = {
    "depthwise": lambda: nn.Conv2d(8, 8, 3, groups=8),
    "two outputs each": lambda: nn.Conv2d(8, 16, 3, groups=8),
    "transposed depthwise": lambda: nn.ConvTranspose2d(8, 8, 3, groups=8),
}


@pytest.mark.parametrize("middle", MIDDLES)
@pytest.mark.parametrize("maker", MAKERS)
@pytest.mark.filterwarnings("ignore:.*weight_norm")
@torch.no_grad()
def test_grouped_layers_whose_weight_is_made_are_narrowed(maker: str, middle: str) -> None:
    torch.manual_seed(0)
    layer = MIDDLES[middle]()
    first, last = MAKERS[maker](nn.Conv2d(3, 8, 1)), nn.Conv2d(layer.out_channels, 2, 1)
    network = nn.Sequential(first, nn.ReLU(), MAKERS[maker](layer), nn.ReLU(), last)
    x = torch.randn(2, 3, 8, 8)
    network.eval()(x)
    pruned, _ = prune_channels(network, x, ratio=0.5)
    assert (pruned[2].in_channels, pruned[2].out_channels, pruned[2].groups) == (4, layer.out_channels // 2, 4)
    assert (pruned[0].out_channels, pruned[4].in_channels) == (4, layer.out_channels // 2)
    assert pruned[2].weight.numel() * 2 == network[2].weight.numel()


@pytest.mark.parametrize("maker", MAKERS)
@pytest.mark.filterwarnings("ignore:.*weight_norm")
@torch.no_grad()
def test_a_transposed_layer_takes_what_its_first_dimension_is_of(maker: str) -> None:
    """As of a vocoder (HiFi-GAN): what it takes is no part of a score, and it is not the layer that makes it."""
    network = nn.Sequential(MAKERS[maker](nn.Conv1d(3, 8, 1)), nn.ReLU(), MAKERS[maker](nn.ConvTranspose1d(8, 2, 4)))
    x = torch.randn(2, 3, 8)
    network.eval()(x)
    (group,) = channels.trace(network, x).groups
    assert layers(group) == ["0"]
    assert {member.role for member in group.members if member.name.startswith("2.")} - {"direction"} == {"in"}


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.filterwarnings("ignore:.*weight_norm", "ignore:.*spectral_norm")
@torch.no_grad()
def test_a_weight_that_a_hook_makes_fits_before_the_next_forward(training: bool) -> None:
    x = torch.randn(2, 4)
    network = nn.Sequential(
        weight_norm(nn.Linear(4, 8)), nn.ReLU(), nn.Linear(8, 6), nn.ReLU(), spectral_norm(nn.Linear(6, 3))
    )
    network.train(training)(x)
    graph = channels.trace(network, x)
    before = {name: value.clone() for name, value in network.state_dict().items() if name.startswith("4.")}
    narrowed, _ = equality.difference(network.eval(), graph, {0: [1, 2, 5]}, x)
    assert narrowed[0].weight.shape == (3, 4)
    assert narrowed[0].out_features == 3
    assert all(torch.equal(narrowed.state_dict()[name], value) for name, value in before.items())  # no power iteration


class Attends(nn.Module):
    """Attention to keys and values of widths of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.keys, self.values = nn.Linear(5, 6), nn.Linear(5, 10)
        self.attention = nn.MultiheadAttention(8, 2, kdim=6, vdim=10, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.attention(torch.nn.functional.pad(x, (0, 3)), self.keys(x).relu(), self.values(x).relu())[0]
        return y


def test_attention_says_how_wide_its_keys_and_values_are() -> None:
    torch.manual_seed(0)
    network, x = equality.randomise(Attends().double()), torch.randn(2, 7, 5, dtype=torch.float64)
    graph = channels.trace(network, x)
    sizes = [group.size for group in graph.groups]
    assert sizes == [6, 10]
    narrowed, error = equality.difference(network, graph, {0: [0, 1, 5], 1: [2, 3, 4, 9]}, x)
    assert error < 1e-12
    assert (narrowed.attention.embed_dim, narrowed.attention.kdim, narrowed.attention.vdim) == (8, 3, 4)


class Divided(nn.Module):
    """Weights, or what they make, over a number that is zero where they are."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.way, self.w, self.g = way, nn.Parameter(torch.randn(8, 3, 1, 1)), nn.Parameter(torch.rand(8, 1, 1, 1))
        self.last = nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        w, norm = self.w, self.w.flatten(1).norm(dim=1)[:, None, None, None]
        w, over_map = DIVIDED[self.way](w, norm, self.g)
        y = nn.functional.conv2d(x, w)
        return self.last(y / y.norm(dim=(2, 3), keepdim=True) if over_map else y)


DIVIDED: dict[str, Callable[[Tensor, Tensor, Tensor], tuple[Tensor, bool]]] = {
    "norm": lambda w, norm, g: (w / norm, False),
    "norm and length": lambda w, norm, g: (g * w / norm, False),
    "power": lambda w, norm, g: (w * norm.pow(-1), False),
    "deviation": lambda w, norm, g: ((w - w.mean(1, keepdim=True)) / w.std(1, keepdim=True), False),
    "normalize": lambda w, norm, g: (nn.functional.normalize(w, dim=1), False),
    "norm of the map": lambda w, norm, g: (g * w, True),
}


@pytest.mark.parametrize("way", DIVIDED)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_channel_that_zero_weights_make_no_number_is_masked_where_it_is_taken(way: str) -> None:
    torch.manual_seed(0)
    network, x = Divided(way).double().eval(), torch.randn(2, 3, 4, 4, dtype=torch.float64)
    graph = channels.trace(network, x)
    assert [group.size for group in graph.groups] == [8]
    narrowed, error = equality.difference(network, graph, {0: [0, 2, 7]}, x)
    assert error < 1e-12
    assert narrowed.w.shape[0] == 3
