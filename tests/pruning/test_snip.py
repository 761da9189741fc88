"""snip reads a network at its start, whose batch normalisations know nothing of any data yet."""

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from memexp.pruning import Settings, mask_weights, remove

IMAGES = torch.randn(10, 3, 6, 6, generator=torch.Generator().manual_seed(0)).double() * 3 + 1
LABELS = torch.arange(10) % 3
DATA = [(IMAGES[:6], LABELS[:6]), (IMAGES[6:], LABELS[6:])]


class Residual(nn.Module):
    """conv-BN-ReLU, two units without normalisation behind their sums, conv-BN over one position, a head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6)
        self.units = nn.ModuleList(nn.Sequential(nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 6, 1)) for _ in range(2))
        self.last, self.drop = nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.ReLU()), nn.Dropout()
        self.head = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu(self.norm(self.stem(x)))
        for unit in self.units:
            x = x + unit(x)
        return self.head(self.drop(self.last(x.mean((2, 3)))))


class Frozen(Residual):
    """One of its normalisations is never trained, as in many detectors."""

    def train(self, mode: bool = True) -> nn.Module:
        super().train(mode)
        self.norm.eval()
        return self


def fresh(kind: type[Residual] = Residual) -> Residual:
    torch.manual_seed(0)
    return kind().double()


def moved() -> Residual:
    network = fresh()
    for layer in network.modules():
        if isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d):
            layer.running_mean.normal_()
            layer.running_var.uniform_(0.5, 2)
    return network


def by_hand(network: Residual, batches: bool) -> dict[str, Tensor]:
    """|w dL/dw| of the mean loss, each batch normalised by itself as in training or all by the running statistics."""
    network = copy.deepcopy(network).train(batches)
    network.drop.eval()
    for images, labels in DATA:
        (functional.cross_entropy(network(images), labels) * len(images) / len(IMAGES)).backward()
    return {name: (p * p.grad).detach().abs() for name, p in network.named_parameters()}


@pytest.mark.parametrize(
    ("network", "batches"),
    [(fresh(), True), (fresh().eval(), True), (fresh(Frozen), True), (moved(), False), (moved().eval(), False)],
    ids=["fresh", "fresh in eval mode", "one kept fixed", "trained", "trained in eval mode"],
)
def test_untrained_normalisations_take_the_statistics_of_each_batch(network: Residual, batches: bool) -> None:
    terms = by_hand(network, batches)
    before, modes = copy.deepcopy(network.state_dict()), [module.training for module in network.modules()]
    for group in remove(network, IMAGES, "snip", Settings(ratio=0.5), data=DATA).groups:
        expected = torch.stack([terms[f"{layer}.weight"].flatten(1).sum(1) for layer in group["layers"]]).mean(0)
        torch.testing.assert_close(torch.tensor(group["scores"]).double(), expected)
    masked, _, _ = mask_weights(network, criterion="snip", ratio=0.5, data=DATA)
    stem = terms["stem.weight"]
    assert torch.equal(masked.stem.weight != 0, stem > stem.flatten().sort().values[stem.numel() // 2 - 1])
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert [module.training for module in network.modules()] == modes
    assert all(m.track_running_stats for m in network.modules() if isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d))


def test_a_last_batch_of_one_image_counts_as_well() -> None:
    data = [(IMAGES[:9], LABELS[:9]), (IMAGES[9:], LABELS[9:])]
    (group, _) = remove(fresh(), IMAGES, "snip", Settings(ratio=0.5), data=data).groups
    (without, _) = remove(fresh(), IMAGES, "snip", Settings(ratio=0.5), data=data[:1]).groups
    assert group["scores"] != pytest.approx(without["scores"])
