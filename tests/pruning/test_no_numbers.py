"""Weights, data, outputs and options that are no proper numbers, and callers that compute in a mode of their own."""

import logging
import re

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from memexp import fusing
from memexp.pruning import CRITERIA, Criterion, mask_weights, prune
from memexp.pruning.checking import CheckFailed
from memexp.pruning.criteria.gradient import Obd

X = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
BROKEN = torch.full((4, 3), float("nan"))
LABELS = torch.tensor([0, 1, 2, 3])


class Network(nn.Module):
    """Linear layers, and what is made of the last one's output."""

    def __init__(self, returns=lambda y: y) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 4))
        self.returns = returns

    def forward(self, x):
        return self.returns(self.layers(x))


def refused(kind, message, network, x=X, **asked):
    with pytest.raises(kind, match=message):
        prune(network, x, **{"ratio": 0.5} | asked)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("criterion", ["l1_norm", "fpgm", "fisher", "obd", "entropy"])
def test_scores_that_are_no_numbers_are_told(criterion, value):
    network = Network()
    network.layers[0].weight.data[1, 1] = value
    refused(ValueError, "layer layers.0 scores that are no finite n", network, criterion=criterion, data=[(X, LABELS)])
    if criterion in ("l1_norm", "obd"):
        with pytest.raises(ValueError, match=f"criterion={criterion} gives layer layers.0 scores that are no finite n"):
            mask_weights(network, criterion=criterion, ratio=0.5, data=[(X, LABELS)])


WITHOUT_VALUES = {
    "prune": lambda network, x, path: prune(network, x, ratio=0.5),
    "draw": lambda network, x, path: prune(network, x, criterion="random", ratio=0.5),
    "mask": lambda network, x, path: mask_weights(network, ratio=0.5),
    "fuse": lambda network, x, path: fusing.fuse(network.eval(), x),
    "grow": lambda network, x, path: fusing.grow(network.eval(), [x]),
    "export": lambda network, x, path: fusing.export(network.eval(), x, path / "net.pt2", merge=None),
}


@pytest.mark.parametrize("use", WITHOUT_VALUES)
def test_weights_without_values_are_told(use, tmp_path):
    with pytest.raises(ValueError, match=r"layers\.0\.weight is on the meta device, where it has no values: load"):
        WITHOUT_VALUES[use](Network().to("meta"), X.to("meta"), tmp_path)


def test_data_and_outputs_that_are_no_numbers_are_told():
    data = [(BROKEN, LABELS)]
    refused(ValueError, "criterion=taylor_weight gives layer", Network(), criterion="taylor_weight", data=data)
    refused(CheckFailed, "outputs are no numbers", Network(), criterion="apoz", data=data)
    refused(CheckFailed, "outputs hold no number", Network(), X[:0])


@pytest.mark.parametrize(
    "returns",
    [
        lambda y: y.masked_fill(torch.arange(4) > 2, float("-inf")),
        lambda y: (y, y[:, :0]),
        lambda y: (y, torch.tensor(float("inf"))),
    ],
    ids=["classes that cannot be", "an empty tensor beside", "infinity alone"],
)
def test_outputs_of_every_kind_are_compared(returns):
    pruned, _ = prune(Network(returns), X, ratio=0.5)
    assert pruned.layers[0].out_features == 4


OPTIONS = [("obd", "probes", 0), ("entropy", "bins", 0), ("obs", "damping", -1.0), ("obs", "largest", float("nan"))]


@pytest.mark.parametrize(("criterion", "option", "value"), OPTIONS)
def test_options_are_above_0(criterion, option, value):
    message = f"criterion={criterion}: {option}={value!r} is not allowed: use a number above 0"
    for made in (criterion, CRITERIA[criterion](**{option: value})):
        options = {option: value} if made is criterion else None
        refused(ValueError, message, Network(), criterion=made, options=options, data=[(X, LABELS)])


@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad, lambda: torch.autocast("cpu", torch.bfloat16)])
@pytest.mark.parametrize("criterion", ["l1_norm", Obd(probes=2)])
def test_the_mode_of_the_caller_makes_no_difference(mode, criterion):
    network, data = Network(), [(X, LABELS)]
    expected, edit = prune(network, X, criterion=criterion, ratio=0.5, data=data)
    with mode():
        pruned, same = prune(network, X.clone(), criterion=criterion, ratio=0.5, data=data)
    assert same == edit
    pruned(X).sum().backward()  # its parameters can be trained
    assert torch.equal(pruned(X), expected(X))


def test_an_exported_graph_is_refused():
    exported = torch.export.export(Network(), (X,)).module()
    refused(ValueError, "the network is an exported graph", exported)


@pytest.mark.parametrize(
    ("criterion", "named"), [("l1_norm", "layers.0"), ("snip", "layers.0"), ("fisher", "layers.0"), ("random", "")]
)
def test_scores_that_are_all_the_same_are_told(criterion, named, caplog):
    network = Network()
    nn.init.zeros_(network.layers[2].weight)  # whose gradient reaches nothing before it
    if criterion == "l1_norm":
        nn.init.ones_(network.layers[0].weight)
    with caplog.at_level(logging.WARNING, "memexp"):
        prune(network, X, criterion=criterion, ratio=0.5, data=[(X, LABELS)])
    assert (f"criterion={criterion} gives all channels of a layer the same score ({named})" in caplog.text) == bool(
        named
    )


@pytest.mark.parametrize("scope", ["layer", "global"])
def test_zeros_beside_those_that_go_are_told(scope, caplog):
    network = Network()
    with caplog.at_level(logging.WARNING, "memexp"):
        mask_weights(network, ratio=0.5, scope=scope)
    assert not caplog.text
    nn.init.zeros_(network.layers[2].weight)
    with caplog.at_level(logging.WARNING, "memexp"):
        mask_weights(network, ratio=0.5, scope="layer")
    assert "layers.2: more of the weights are zero than were to go" in caplog.text


class Own(Criterion):
    """A user's, that gives what `made` makes of a group's size."""

    def __init__(self, made) -> None:
        self.made = made

    def scores(self, network, groups, calibration):
        return [self.made(group.size) for group in groups]


@pytest.mark.parametrize("made", [lambda n: list(range(n)), np.arange, lambda n: torch.arange(n).half()])
def test_scores_of_ones_own_may_be_any_numbers(made):
    _, edit = prune(Network(), X, criterion=Own(made), ratio=0.5)
    assert edit["kept"]["layers.0.weight"]["0"] == [4, 5, 6, 7]


@pytest.mark.parametrize("shape", [(7,), (8, 2), ()])
def test_scores_that_are_not_one_a_channel_are_refused(shape):
    message = f"criterion=Own gives layer layers.0 scores of shape {shape}: give one for each of what can go there, a"
    refused(ValueError, re.escape(message), Network(), criterion=Own(lambda n: torch.rand(shape)))


LOSSES = [
    (lambda y, labels: functional.cross_entropy(y, labels, reduction="none"), "a tensor of shape (4,)"),
    (lambda y, labels: {"loss": y.sum()}, "a dict"),
]


@pytest.mark.parametrize(("loss_fn", "what"), LOSSES)
@pytest.mark.parametrize("criterion", ["fisher", "snip"])
def test_a_loss_that_is_no_one_number_is_refused(criterion, loss_fn, what):
    message = f"loss_fn gives {what}: return the mean over the batch's samples"
    refused(ValueError, re.escape(message), Network(), criterion=criterion, data=[(X, LABELS)], loss_fn=loss_fn)
