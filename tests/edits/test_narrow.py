"""The edit `narrow`: what it changes, and what it refuses."""

import copy
import json
import re
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from memexp import edits


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.widths, self.count = [2, 4], 6
        self.conv, self.norm = nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6)
        self.deep = nn.Conv2d(6, 12, 3, groups=6)
        self.up, self.layer = nn.ConvTranspose2d(12, 4, 2), nn.LayerNorm(4)
        self.head = nn.Linear(4, 2)
        self.same = self.head  # a parameter of two names

    def forward(self, x: Tensor) -> Tensor:
        y = self.up(self.deep(self.norm(self.conv(x))))
        return self.same(self.layer(y.mean((2, 3))))


EDIT: dict[str, Any] = {
    "kind": "narrow",
    "kept": {
        "conv.weight": {"0": [0, 2, 5]},
        "conv.bias": {"0": [0, 2, 5]},
        **{f"norm.{name}": {"0": [0, 2, 5]} for name in ("weight", "bias", "running_mean", "running_var")},
        "deep.weight": {"0": [0, 1, 4, 5, 10, 11]},
        "deep.bias": {"0": [0, 1, 4, 5, 10, 11]},
        "up.weight": {"0": [0, 1, 4, 5, 10, 11], "1": [1, 3]},
        "up.bias": {"0": [1, 3]},
        "layer.weight": {"0": [1, 3]},
        "layer.bias": {"0": [1, 3]},
        "head.weight": {"1": [1, 3]},
    },
    "attributes": {"": {"count": 3, "widths.1": 2}},
}


def test_values_widths_and_attributes() -> None:
    torch.manual_seed(0)
    network = Small().eval()
    network.conv.weight.requires_grad_(False)
    before = copy.deepcopy(network.state_dict())
    assert edits.apply(network, EDIT) is network
    assert torch.equal(network.conv.weight, before["conv.weight"][[0, 2, 5]])
    assert torch.equal(network.up.weight, before["up.weight"][[0, 1, 4, 5, 10, 11]][:, [1, 3]])
    assert torch.equal(network.norm.running_var, before["norm.running_var"][[0, 2, 5]])
    assert not network.conv.weight.requires_grad
    assert network.deep.weight.requires_grad
    assert (network.conv.out_channels, network.norm.num_features) == (3, 3)
    assert (network.deep.groups, network.deep.in_channels, network.deep.out_channels) == (3, 3, 6)
    assert (network.up.in_channels, network.up.out_channels) == (6, 2)
    assert network.layer.normalized_shape == (2,)
    assert (network.head.in_features, network.head.out_features) == (2, 2)
    assert network.same.weight is network.head.weight
    assert (network.count, network.widths) == (3, [2, 2])
    assert network(torch.randn(1, 3, 8, 8)).shape == (1, 2)


def test_rebuilt_without_data_and_loaded(tmp_path: Any) -> None:
    network = edits.apply(Small().eval(), EDIT)
    torch.save({"edit": EDIT, "model": network.state_dict()}, tmp_path / "x.pt")
    saved = torch.load(tmp_path / "x.pt", weights_only=True)
    with torch.device("meta"):
        rebuilt = edits.apply(Small(), json.loads(json.dumps(saved["edit"]))).eval()
    assert all(p.is_meta for p in rebuilt.parameters())
    rebuilt.load_state_dict(saved["model"], assign=True)
    x = torch.randn(2, 3, 8, 8)
    assert torch.equal(rebuilt(x), network(x))


@pytest.mark.parametrize(
    ("kept", "attributes", "words"),
    [
        ({"con.weight": {"0": [0]}}, {}, "no parameter or buffer 'con.weight'"),
        ({"conv.weight": {"4": [0]}}, {}, "conv.weight has dimensions 0 to 3, not '4'"),
        ({"conv.weight": {"-1": [0]}}, {}, "conv.weight has dimensions 0 to 3, not '-1'"),
        ({"conv.weight": {"0": []}}, {}, "give at least one index of 0 to 5"),
        ({"conv.weight": {"0": [0, 6]}}, {}, "give at least one index of 0 to 5"),
        ({"conv.weight": {"0": [-1]}}, {}, "give at least one index of 0 to 5"),
        ({"conv.weight": {"0": [0.0]}}, {}, "give at least one index of 0 to 5"),
        ({"conv.weight": {"0": [1, 1]}}, {}, "keeps an index twice"),
        ({}, {"nothing": {"count": 3}}, "no module 'nothing'"),
        ({}, {"": {"depth": 3}}, "the network has no attribute 'depth' that is a whole number"),
        ({}, {"": {"widths.2": 3}}, "no attribute 'widths.2'"),
        ({}, {"conv": {"training": 0}}, "conv has no attribute 'training' that is a whole number"),
        ({}, {"": {"count": 7}}, "count is 6 and can be 0 to 6, not 7"),
    ],
)
def test_what_does_not_fit_is_refused_and_nothing_changes(kept: Any, attributes: Any, words: str) -> None:
    network = Small()
    before = {name: value.shape for name, value in network.state_dict().items()}
    valid = {"norm.weight": {"0": [0]}}
    with pytest.raises(ValueError, match=re.escape(words)):
        edits.apply(network, {"kind": "narrow", "kept": valid | kept, "attributes": attributes})
    assert {name: value.shape for name, value in network.state_dict().items()} == before


def test_without_memory() -> None:
    """Inside a fake mode, as estimates of memory build networks."""
    from memexp.memory.fake import without_data

    with without_data():
        network = edits.apply(Small(), EDIT)
        assert network(torch.randn(1, 3, 8, 8)).shape == (1, 2)
    assert network.conv.weight.shape == (3, 3, 3, 3)


class Remembers(nn.Module):
    """What it makes of its weights is kept until the mode is set, as timm does with attention biases."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.bias, self.made = nn.Linear(3, 4), nn.Parameter(torch.randn(4)), None

    def train(self, mode: bool = True) -> Any:
        self.made = None
        return super().train(mode)

    def forward(self, x: Tensor) -> Tensor:
        self.made = self.bias * 2 if self.made is None else self.made
        return self.layer(x) + self.made


@pytest.mark.parametrize("training", [False, True])
def test_what_was_made_of_the_old_weights_is_forgotten(training: bool) -> None:
    torch.manual_seed(0)
    network, x = nn.Sequential(Remembers(), nn.Dropout()).train(training), torch.randn(2, 3)
    network[1].eval()
    expected = network(x)[:, [0, 2]]
    network = edits.apply(network, {"kind": "narrow", "kept": {
        "0.layer.weight": {"0": [0, 2]}, "0.layer.bias": {"0": [0, 2]}, "0.bias": {"0": [0, 2]},
    }})  # fmt: skip
    assert torch.equal(network(x), expected)
    assert [m.training for m in network.modules()] == [training, training, training, False]
