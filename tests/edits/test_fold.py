"""Fold: the same function for every layer that it takes, bitwise from meta tensors, nothing changed where it does not fit."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import prune

from memexp import edits, fusing, models
from memexp.backprop import Chain


def settled(network: nn.Module) -> nn.Module:
    """In eval, with statistics and affine parameters that are not those of a fresh BN."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
            if module.affine:
                nn.init.uniform_(module.weight, 0.5, 2)
                nn.init.normal_(module.bias)
    return network.eval()


LAYERS = {
    "convolution": (nn.Conv2d(4, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6), (2, 4, 7, 7)),
    "with bias": (nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6), (2, 4, 7, 7)),
    "groups, stride, dilation": (nn.Conv2d(4, 6, 3, 2, 2, 2, groups=2), nn.BatchNorm2d(6), (2, 4, 9, 9)),
    "reflected border": (nn.Conv2d(4, 6, 3, padding=1, padding_mode="reflect"), nn.BatchNorm2d(6), (2, 4, 7, 7)),
    "not affine": (nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6, affine=False), (2, 4, 7, 7)),
    "transposed": (nn.ConvTranspose2d(4, 6, 3, 2, bias=False), nn.BatchNorm2d(6), (2, 4, 5, 5)),
    "transposed in groups": (nn.ConvTranspose2d(4, 6, 3, groups=2), nn.BatchNorm2d(6), (2, 4, 5, 5)),
    "one dimension": (nn.Conv1d(4, 6, 3), nn.BatchNorm1d(6), (2, 4, 7)),
    "three dimensions": (nn.Conv3d(4, 6, 3), nn.BatchNorm3d(6), (2, 4, 5, 5, 5)),
    "linear": (nn.Linear(4, 6, bias=False), nn.BatchNorm1d(6), (5, 4)),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("case", LAYERS)
def test_folded_is_what_layer_and_normalisation_compute(case, dtype):
    torch.manual_seed(0)
    layer, norm, shape = copy.deepcopy(LAYERS[case])
    network = settled(nn.Sequential(layer, norm, nn.ReLU())).to(dtype)
    state = {key: value.clone() for key, value in network.state_dict().items()}
    x = torch.randn(shape, dtype=dtype)
    with torch.no_grad():
        before = network(x)
        pairs = fusing.folds(network, x)
        assert pairs == [["0", "1"]]
        folded = edits.apply(network, {"kind": "fold", "pairs": pairs})
        after = folded(x)
    assert isinstance(folded[1], nn.Identity)
    assert folded[0].bias is not None
    bound = 1e-5 if dtype is torch.float32 else 1e-12
    assert (after - before).abs().max() <= bound * before.abs().max()
    assert not torch.equal(folded[0].weight, state["0.weight"])


def test_folded_vgg16_comes_back_from_its_edits_bitwise():
    torch.manual_seed(0)

    def build() -> nn.Module:
        return models.create("vgg16", classes=10, shape=(3, 32, 32), chain=Chain)

    network, x = settled(build()), torch.randn(4, 3, 32, 32)
    with torch.no_grad():
        before = network(x)
        edit = {"kind": "fold", "pairs": fusing.folds(network, x)}
        after = edits.apply(network, edit)(x)
        with torch.device("meta"):
            again = edits.apply(build(), edit)
        again.load_state_dict(network.state_dict(), assign=True)
        assert len(edit["pairs"]) == 14  # 13 convolutions and the hidden linear layer
        assert (after - before).abs().max() <= 1e-5 * before.abs().max()
        assert torch.equal(again.eval()(x), after)


def test_memory_format_dtype_and_frozen_weights_stay():
    network = settled(nn.Sequential(nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6))).to(memory_format=torch.channels_last)
    network[0].weight.requires_grad_(False)
    folded = edits.apply(network, {"kind": "fold", "pairs": [["0", "1"]]})[0]
    assert folded.weight.is_contiguous(memory_format=torch.channels_last)
    assert not folded.weight.requires_grad
    assert not folded.bias.requires_grad


class Shared(nn.Module):
    """One convolution before two normalisations."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.a, self.b = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4), nn.BatchNorm2d(4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.b(self.conv(self.a(self.conv(x))))


class Read(nn.Module):
    """conv, then BN; `how` says what else reads between them, or of the layers."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.conv, self.norm, self.how = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4), how

    def forward(self, x: torch.Tensor):
        y = self.conv(x)
        if self.how == "returned too":
            return self.norm(y), y
        if self.how == "changed in place":
            y.mul_(2)
        if self.how == "changed through a view":
            y[:, 0].mul_(2)
        if self.how == "read as numbers":
            return self.norm(y) * y.flatten()[0].item()
        if self.how == "residual":
            return self.norm(y) + y
        if self.how == "weight read elsewhere":
            return self.norm(y) + self.conv.weight.sum()
        if self.how == "weight used by another call":
            return nn.functional.conv2d(self.norm(y), self.conv.weight)
        if self.how == "called past its hooks":
            return self.norm.forward(y)
        if self.how == "padded between":
            return self.norm(nn.functional.pad(y, (1, 1, 1, 1)))
        if self.how == "two batches":
            return self.norm(self.conv(x)) + self.norm(x)
        return self.norm(y)


def _hooked(module: str, how: str) -> nn.Module:
    network = nn.Sequential(nn.Sequential(nn.Conv2d(4, 4, 3)), nn.BatchNorm2d(4))
    target = network.get_submodule(module)
    if how == "forward":
        target.register_forward_hook(lambda *_: None)
    elif how == "pre":
        target.register_forward_pre_hook(lambda *_: None)
    else:
        target.register_full_backward_hook(lambda *_: None)
    return network


class Scaled(nn.Conv2d):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) * 2


def _tied() -> nn.Module:
    network = nn.Sequential(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4))
    network[2].weight = network[0].weight
    return network


def _old_weight_norm() -> nn.Module:
    with pytest.warns(FutureWarning):
        return nn.Sequential(nn.utils.weight_norm(nn.Conv2d(4, 4, 3)), nn.BatchNorm2d(4))


REFUSED = {
    "shared layer": Shared,
    **{
        how: (lambda how=how: Read(how))
        for how in (
            *("returned too", "changed in place", "changed through a view", "read as numbers", "residual"),
            *("weight read elsewhere", "weight used by another call", "called past its hooks", "padded between"),
            "two batches",
        )
    },
    "hook on the layer": lambda: _hooked("0.0", "forward"),
    "pre-hook on the normalisation": lambda: _hooked("1", "pre"),
    "hook on what holds the layer": lambda: _hooked("0", "forward"),
    "backward hook": lambda: _hooked("1", "backward"),
    "weight norm": lambda: nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Conv2d(4, 4, 3)), nn.BatchNorm2d(4)),
    "weight norm of old": _old_weight_norm,
    "pruned by a mask": lambda: nn.Sequential(
        prune.l1_unstructured(nn.Conv2d(4, 4, 3), "weight", 0.5), nn.BatchNorm2d(4)
    ),
    "a subclass of its own": lambda: nn.Sequential(Scaled(4, 4, 3), nn.BatchNorm2d(4)),
    "weights of another layer": _tied,
    "no running statistics": lambda: nn.Sequential(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4, track_running_stats=False)),
    "activation between": lambda: nn.Sequential(nn.Conv2d(4, 4, 3), nn.ReLU(inplace=True), nn.BatchNorm2d(4)),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_not_the_same_when_folded_is_not_found(case):
    network = REFUSED[case]().eval()
    x = torch.randn(2, 4, 9, 9)
    if case == "weight used by another call":
        network.conv.padding, network.how = (1, 1), case
    assert fusing.folds(network, x) == []


class Twice(nn.Module):
    """Layers with two names: in one module, or in two."""

    def __init__(self, apart: bool) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4)
        if apart:
            self.both = nn.Sequential(self.conv, self.norm)
        else:
            self.first, self.second = self.conv, self.norm

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.both(x) if hasattr(self, "both") else self.second(self.first(x))
        return y


@pytest.mark.parametrize("apart", [False, True])
def test_layers_of_two_names_that_are_called_once_are_folded(apart):
    network, x = settled(Twice(apart)), torch.randn(2, 4, 9, 9)
    deployed = fusing.fuse(network, x)
    assert deployed.edits == [{"kind": "fold", "pairs": [["conv", "norm"]]}]
    assert not any(isinstance(module, nn.BatchNorm2d) for module in deployed.network.modules())
    assert len(list(deployed.network.parameters())) == 2


def test_norm_of_another_dimension_is_not_found():
    network = nn.Sequential(nn.Linear(5, 6), nn.BatchNorm1d(6)).eval()
    assert fusing.folds(network, torch.randn(2, 6, 5)) == []  # it normalises the 6 rows, not the 6 outputs


def test_train_mode_is_refused_by_name_and_not_switched():
    network = nn.Sequential(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4)).eval()
    network[1].train()
    with pytest.raises(ValueError, match=r"1 is in train mode.*eval"):
        fusing.folds(network, torch.randn(2, 4, 9, 9))
    assert network[1].training


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        ([["0", "5"]], "no module '5'"),
        ([["1", "0"]], "BatchNorm2d is no plain convolution"),
        ([["0", "2"]], "ReLU is no plain batch normalisation"),
        ([["0", "3"]], "gives 4 channels, the normalisation takes 6"),
        ([["0", "1"], ["0", "1"]], "folded twice"),
        ([["0"]], "is not a list of"),
        (None, "is not a list of"),
    ],
)
def test_edit_of_another_network_is_refused_and_changes_nothing(pairs, message):
    network = settled(nn.Sequential(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.BatchNorm2d(6)))
    before = {key: value.clone() for key, value in network.state_dict().items()}
    with pytest.raises(ValueError, match=message):
        edits.apply(network, {"kind": "fold", "pairs": pairs})
    assert before.keys() == network.state_dict().keys()
    assert all(torch.equal(value, network.state_dict()[key]) for key, value in before.items())
