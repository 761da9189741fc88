"""Masks of single weights: which go, how sparse it is, and that zeros stay zeros through training and saving."""

import copy
import io

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.nn.utils import parametrizations, prune, weight_norm

from memexp.optim import Lookahead
from memexp.pruning import Masks, mask_weights
from memexp.pruning.unstructured import foresee_mask

INPUTS = torch.randn(12, 3, 6, 6, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(12) % 5
DATA = [(INPUTS[:8], LABELS[:8]), (INPUTS[8:], LABELS[8:])]


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 5),
    )


def test_the_smallest_weights_of_each_layer_go():
    net = network()
    pruned, _, record = mask_weights(net, criterion="l1_norm", ratio=0.75)
    for name in ("0", "5"):
        before, after = net.get_submodule(name).weight.detach(), pruned.get_submodule(name).weight.detach()
        size = before.abs().flatten().sort().values
        threshold = size[3 * len(size) // 4]
        assert torch.equal(after, torch.where(before.abs() >= threshold, before, 0))
    assert record["sparsity"]["layers"] == {"0": 0.75, "5": 0.75}
    assert record["sparsity"]["masked"] == 0.75
    others = 8 + 8 + 5  # BN's scales and shifts and the head's bias, of which the shifts are zero from the start
    assert record["sparsity"]["network"] == (0.75 * (216 + 40) + 8) / (216 + 40 + others)


@pytest.mark.parametrize("criterion", ["l1_norm", "taylor_weight", "obd", "snip", "random"])
@pytest.mark.parametrize("scope", ["layer", "global"])
def test_the_sparsity_asked_for_is_there(criterion, scope):
    net = network()
    before = copy.deepcopy(net.state_dict())
    _, masks, record = mask_weights(net, criterion=criterion, ratio=0.5, scope=scope, data=DATA)
    assert record["sparsity"]["masked"] == 0.5
    assert sum(int((~mask).sum()) for mask in masks.masks.values()) == 128
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


@pytest.mark.parametrize("scope", ["layer", "global"])
@pytest.mark.parametrize("criterion", ["l1_norm", "obd", "random"])  # obd finds less than nothing in some weights
def test_what_has_gone_counts(criterion, scope):
    net = network()
    for seed, ratio in enumerate((0.25, 0.5, 0.75)):
        net, _, record = mask_weights(net, criterion=criterion, ratio=ratio, scope=scope, data=DATA, seed=seed)
        assert record["sparsity"]["masked"] == ratio


def test_scores_of_single_weights_by_hand():
    """Weights 1, -2, 3 on inputs 4, 1, 1 with target 0: dL/dw = y x with y = 5: 20, 5, 5; w dL/dw: 20, -10, 15."""
    net = nn.Sequential(nn.Linear(3, 1, bias=False))
    net[0].weight.data = torch.tensor([[1.0, -2.0, 3.0]])
    data = [(torch.tensor([[4.0, 1.0, 1.0]]), torch.zeros(1, 1))]
    half = lambda outputs, targets: (outputs - targets).square().mean() / 2  # noqa: E731
    for criterion, kept in [("l1_norm", [0, 1, 1]), ("snip", [1, 0, 1]), ("taylor_weight", [1, 0, 1])]:
        pruned, _, _ = mask_weights(net, criterion=criterion, ratio=0.33, data=data, loss_fn=half)
        assert (pruned[0].weight != 0).int().tolist() == [kept], criterion


def test_global_scope_compares_what_is_of_the_loss_as_it_is():
    net = network()
    _, masks, _ = mask_weights(net, criterion="snip", ratio=0.3, scope="global", data=DATA)
    for inputs, labels in DATA:  # each normalised by itself
        functional.cross_entropy(net(inputs), labels, reduction="sum").backward()
    sensitivity = torch.cat([(layer.weight * layer.weight.grad).abs().flatten() for layer in (net[0], net[5])])
    threshold = sensitivity.sort().values[256 - 179]  # 70 % of 256 stay, cut off
    assert torch.equal(torch.cat([mask.flatten() for mask in masks.masks.values()]), sensitivity >= threshold)


def test_global_scope_takes_norms_relative_to_their_layer_and_leaves_each_its_floor():
    net = network()
    net[5].weight.data *= 1e-3
    _, _, record = mask_weights(net, criterion="l1_norm", ratio=0.2, scope="global")
    assert record["sparsity"]["layers"]["5"] < 0.4
    net[0].weight.data[:6] *= 1e-6  # three quarters of a layer would all go
    _, _, record = mask_weights(net, criterion="l1_norm", ratio=0.55, scope="global", floor=0.4)
    assert record["sparsity"]["layers"]["0"] == pytest.approx(0.6, abs=0.01)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw", "lookahead"])
def test_zeros_stay_zeros_through_training_and_saving(optimizer):
    pruned, masks, _ = mask_weights(network(), ratio=0.5)
    made = {
        "sgd": lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, weight_decay=1e-2),
        "adamw": lambda p: torch.optim.AdamW(p, 0.1),
        "lookahead": lambda p: Lookahead(torch.optim.SGD(p, 0.1, momentum=0.9), k=2),
    }[optimizer](pruned.parameters())
    masks.hold(made)
    start = pruned[0].weight.detach().clone()
    for inputs, labels in DATA * 2:
        made.zero_grad()
        functional.cross_entropy(pruned(inputs), labels).backward()
        made.step()
    for weight, mask in masks.masks.items():
        assert torch.equal(weight != 0, mask)
        for value in made.state[weight].values():
            if value.shape == weight.shape:
                assert not value[~mask].any()
    assert not torch.equal(pruned[0].weight, start)
    file = io.BytesIO()
    torch.save(pruned.state_dict(), file)
    file.seek(0)
    again = network()
    again.load_state_dict(torch.load(file, weights_only=True))
    for mask, read in zip(masks.masks.values(), Masks.of(again).masks.values(), strict=True):
        assert torch.equal(mask, read)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (
            {"criterion": "fpgm", "ratio": 0.5},
            "criterion=fpgm scores filters, not single weights: use one of l1_norm, ",
        ),
        ({"criterion": "snip", "ratio": 0.5}, "criterion=snip reads data, and there is none"),
        ({"ratio": 1.0}, "ratio=1 is not allowed"),
        ({"scope": {"6": 0.5}}, "there is no convolution or linear layer '6'; nearest: 0, 5"),
        ({"ratio": 0.95, "scope": "global", "floor": 0.1}, "ratio=0.95 with floor=0.1 cannot be"),
    ],
)
def test_what_cannot_be_asked_is_refused_in_a_sentence(asked, message):
    with pytest.raises(ValueError, match=message):
        mask_weights(network(), **asked)


@pytest.mark.parametrize(
    "made",
    [
        parametrizations.weight_norm,
        parametrizations.orthogonal,
        parametrizations.spectral_norm,
        weight_norm,
        lambda layer: prune.random_unstructured(layer, "weight", 0.5),
    ],
)  # fmt: skip
@pytest.mark.parametrize("layer", ["0", "5"])
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_a_layer_whose_weight_is_computed_is_not_left_out_silently(made, layer):
    net = network()
    made(net.get_submodule(layer))
    other = {"0": "5", "5": "0"}[layer]
    for asked in ({"ratio": 0.5}, {"ratio": 0.5, "scope": "global"}, {"scope": {other: 0.5, layer: 0.5}}):
        arguments = {"ratio": None, "scope": "layer", "floor": 0.01} | asked
        for attempt in (mask_weights, foresee_mask):
            with pytest.raises(ValueError, match=f"the weight of layer {layer} is no parameter but is computed"):
                attempt(net, **arguments)
    with torch.no_grad():
        net(INPUTS)  # what hooks set can be copied again
    _, _, record = mask_weights(net, scope={other: 0.5})
    assert record["sparsity"]["layers"] == {other: 0.5}


@pytest.mark.parametrize(
    ("net", "message"),
    [
        (nn.Sequential(nn.BatchNorm2d(3), nn.ReLU()), "no convolution and no linear layer with a weight of its own"),
        (nn.Bilinear(2, 3, 4), "no convolution and no linear layer with a weight of its own"),
        (parametrizations.weight_norm(nn.Linear(3, 4)), "the weight of layer ParametrizedLinear is no parameter"),
    ],
)
@pytest.mark.parametrize("asked", [{"ratio": 0.5}, {"ratio": 0.5, "scope": "global"}, {"scope": {"": 0.5}}])
def test_a_network_without_weights_to_mask_is_refused(net, message, asked):
    arguments = {"ratio": None, "scope": "layer", "floor": 0.01} | asked
    for attempt in (mask_weights, foresee_mask):
        with pytest.raises(ValueError, match=message):
            attempt(net, **arguments)
