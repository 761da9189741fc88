"""Which parameters a criterion reads: filters, scales of normalisations, and nothing that is only added or multiplied."""

import copy
import warnings

import pytest
import torch
from torch import nn
from torch.nn.functional import linear
from torch.nn.utils import parametrizations, prune

from memexp.pruning import CRITERIA, Settings, remove

IMAGES = torch.randn(4, 3, 6, 6, generator=torch.Generator().manual_seed(0))
DATA = [(IMAGES, torch.arange(4) % 2)]
SCALES = torch.tensor([0.1, -0.2, 0.6, 0.4])


class Shift(nn.Module):
    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.arange(4.0).view(shape) * 100)

    def forward(self, x):
        return x + self.shift


class Scale(nn.Module):
    """A LayerScale: no normalisation."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([9.0, 6.0, 3.0, 1.0])[:, None, None])

    def forward(self, x):
        return x * self.weight


class OwnNorm(nn.Module):
    """As many write theirs, with scales and shifts by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.gamma, self.beta = nn.Parameter(torch.ones(4, 1, 1)), nn.Parameter(torch.full((4, 1, 1), 0.5))

    def forward(self, x):
        return x * x.square().mean((2, 3), keepdim=True).add(1e-5).rsqrt() * self.gamma + self.beta


def network(*middle: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    made = nn.Sequential(
        nn.Conv2d(3, 4, 3), *middle, nn.ReLU(), nn.Conv2d(4, 2, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    )
    return made.eval()


def scored(made: nn.Module, criterion: str, **options) -> list[float]:
    (group,) = remove(made, IMAGES, criterion, Settings(ratio=0.5), data=DATA, options=options).groups
    return group["scores"]


@pytest.mark.parametrize("criterion", ["l1_norm", "l2_norm", "signed_sum", "mean", "std", "fpgm", "lamp"])
@pytest.mark.parametrize("shape", [(4, 1, 1), (1, 4, 1, 1)])
def test_what_is_added_is_no_filter_whatever_its_shape(criterion, shape):
    made = network(Shift(*shape))
    assert scored(made, criterion) == scored(network(), criterion)
    assert remove(made, IMAGES, criterion, Settings(ratio=0.5)).groups[0]["layers"] == ["0"]


@pytest.mark.parametrize("criterion", ["taylor_weight", "snip", "obd", "obs"])
def test_nor_where_gradients_are_read(criterion):
    """A shift of its own in place of the convolution's bias: the same function, and the same scores."""
    shifted, plain = network(Shift(1, 4, 1, 1)), network()
    plain[0].bias.data += shifted[1].shift.data.flatten()
    torch.testing.assert_close(scored(shifted, criterion), scored(plain, criterion), rtol=1e-3, atol=1e-7)


def test_a_filter_of_one_weight_is_a_filter():
    made = nn.Sequential(nn.Conv2d(1, 4, 1), nn.ReLU(), nn.Conv2d(4, 2, 1))
    (group,) = remove(made, IMAGES[:, :1], "l1_norm", Settings(ratio=0.5)).groups
    torch.testing.assert_close(group["scores"], made[0].weight.detach().double().abs().flatten().tolist())


@pytest.mark.parametrize("norm", [nn.BatchNorm2d, lambda n: nn.GroupNorm(4, n), OwnNorm])
@pytest.mark.parametrize("other", [nn.PReLU, lambda n: Scale(), lambda n: Shift(1, 4, 1, 1)])
@pytest.mark.parametrize("before", [False, True])
def test_scales_are_those_of_normalisations_alone(norm, other, before):
    normalises = norm(4) if norm is not OwnNorm else OwnNorm()
    (scale, _) = normalises.parameters()
    scale.data = SCALES.view_as(scale).clone()
    middle = [other(4), normalises] if before else [normalises, other(4)]
    torch.testing.assert_close(scored(network(*middle), "bn_scale"), SCALES.double().abs().tolist())


@pytest.mark.parametrize("norm", [nn.BatchNorm2d, lambda n: nn.GroupNorm(4, n), lambda n: OwnNorm()])
@pytest.mark.parametrize("other", [nn.PReLU, lambda n: Scale()])
def test_gates_are_those_of_normalisations_alone(norm, other):
    """gamma dL/dgamma + beta dL/dbeta, by autograd."""
    normalises = norm(4)
    made = network(normalises, other(4))
    nn.functional.cross_entropy(made(IMAGES), DATA[0][1]).backward()
    gates = sum((p.detach() * p.grad).double().flatten() for p in normalises.parameters())
    torch.testing.assert_close(scored(made, "taylor_weight", gates=True), gates.square().tolist(), rtol=1e-4, atol=1e-9)


@pytest.mark.parametrize(("criterion", "options"), [("bn_scale", {}), ("taylor_weight", {"gates": True})])
@pytest.mark.parametrize(
    "middle", [[nn.PReLU(4)], [Scale()], [Shift(4, 1, 1)], [nn.BatchNorm2d(4, affine=False), nn.PReLU(4)], []]
)
def test_without_a_normalisation_there_is_no_scale(criterion, options, middle):
    with pytest.raises(
        ValueError, match=f"criterion={criterion} reads the scales of normalisation layers, .* layer 0 h"
    ):
        scored(network(*middle), criterion, **options)


def test_every_criterion_scores_one_figure_a_filter_where_all_of_these_are():
    for criterion in CRITERIA:
        assert len(scored(network(nn.BatchNorm2d(4), Scale(), Shift(1, 4, 1, 1)), criterion)) == 4


@pytest.mark.parametrize("criterion", ["l1_norm", "taylor_weight", "obd"])
def test_a_mask_of_weights_is_no_filter(criterion: str) -> None:
    """A buffer that weights are multiplied by was scored beside them, or had no gradient to be scored by."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(3, 6), nn.ReLU(), nn.Linear(6, 2))
    torch.nn.utils.prune.l1_unstructured(network[0], "weight", 0.3)
    x = torch.randn(4, 3)
    result = remove(network, x, criterion, Settings(ratio=0.5), data=[(x, torch.tensor([0, 1, 0, 1]))])
    assert result.record["widths"] == {"0": [6, 3]}
    if criterion == "l1_norm":
        assert result.groups[0]["scores"] == pytest.approx(network[0].weight.abs().sum(1).tolist())


def _weight_norm(layer: nn.Module) -> nn.Module:
    with warnings.catch_warnings(action="ignore", category=FutureWarning):
        return nn.utils.weight_norm(layer)


MADE = {
    "masked": lambda layer: prune.l1_unstructured(layer, "weight", 0.4),
    "masked twice": lambda layer: prune.random_unstructured(prune.l1_unstructured(layer, "weight", 0.2), "weight", 0.3),
    "weight_norm": _weight_norm,
    "parametrised": nn.utils.parametrizations.weight_norm,
}


@pytest.mark.parametrize("criterion", [name for name in CRITERIA if name not in ("random", "obs", "bn_scale")])
@pytest.mark.parametrize("kind", MADE)
def test_what_a_layer_computes_with_is_scored(kind: str, criterion: str) -> None:
    """Not what it is made of: v of a weight norm, weights under a mask; and as they are now, not at the last forward."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(3, 6), nn.ReLU(), nn.Linear(6, 2))
    network[0] = MADE[kind](network[0])
    x = torch.randn(8, 3)
    with torch.no_grad():
        network(x)
        for p in network[0].parameters():  # since the last forward
            p.mul_(torch.rand_like(p) + 0.5)
        made = copy.deepcopy(network[0])
        made(x)
    plain = nn.Sequential(nn.Linear(3, 6), nn.ReLU(), network[2])
    plain[0].weight, plain[0].bias = nn.Parameter(made.weight.detach()), made.bias
    one, other = (
        remove(n, x, criterion, Settings(ratio=0.5), data=[(x, torch.arange(8) % 2)]).groups[0]["scores"]
        for n in (network, plain)
    )
    assert one == pytest.approx(other, rel=1e-5)


def test_obs_moves_what_is_under_a_mask_and_says_where_it_cannot() -> None:
    torch.manual_seed(0)
    x = torch.randn(8, 3)
    for kind in ("masked", "weight_norm", "parametrised"):
        network = nn.Sequential(nn.Linear(3, 6), nn.Tanh(), nn.Linear(6, 2))
        network[0] = MADE[kind](network[0])
        settings, data = Settings(ratio=0.5), [(x, torch.arange(8) % 2)]
        if kind == "masked":
            pruned = remove(network, x, "obs", settings, data=data)
            kept = pruned.groups[0]["kept"]
            assert not torch.equal(pruned.network[0].weight_orig, network[0].weight_orig[kept])
            assert torch.equal(pruned.network[0].weight == 0, network[0].weight[kept] == 0)
        else:
            with pytest.raises(ValueError, match=r"criterion=obs moves .* of layer 0 are made of 0"):
                remove(network, x, "obs", settings, data=data)


class OfTheNetworkItself(nn.Module):
    """Its weights are in no layer."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Parameter(torch.randn(9, 5)), nn.Parameter(torch.randn(7, 9))
        self.head = nn.Linear(7, 2)

    def forward(self, x):
        return self.head(linear(linear(x, self.first).relu(), self.second).relu())


@pytest.mark.parametrize("made", [False, True])
def test_weights_of_the_network_itself_are_called_by_their_own_names(made: bool) -> None:
    torch.manual_seed(0)
    network = OfTheNetworkItself()
    if made:
        parametrizations.weight_norm(network, "first")
    removal = remove(network, torch.randn(2, 5), "signed_sum", Settings(scope={"first": 0.5, "second": 0.3}))
    assert removal.record["widths"] == {"first": [9, 4], "second": [7, 4]}
    scores = {group["layers"][0]: group["scores"] for group in removal.groups}
    torch.testing.assert_close(torch.tensor(scores["first"]).float(), network.first.detach().sum(1))
