"""Pruning whole networks: scopes, targets, orders, published shapes, and what public tools get wrong."""

import copy
import io
import json

import pytest
import torch
import torchvision
from removal_networks import DATA, IMAGES, LABELS, count, family, small, widths
from torch import Tensor, nn
from torch.nn import functional

from memexp import edits, models
from memexp.backprop import Chain
from memexp.pruning import Settings, prune, remove
from memexp.pruning.counting import Skeleton


def test_pfec_vgg16_a_has_the_published_parameters_and_macs():
    """Li et al. 2017, table 1: conv1 64 -> 32 and conv8-13 512 -> 256 make 5.4e6 parameters and 2.06e8 MACs."""
    network = models.create("vgg16", classes=10, shape=(3, 32, 32), chain=Chain)
    convolutions = [name for name, module in network.named_modules() if isinstance(module, nn.Conv2d)]
    scope = dict.fromkeys([convolutions[0], *convolutions[7:]], 0.5)
    result = remove(network, IMAGES, "l1_norm", Settings(scope=scope))
    assert widths(result.network) == [32, 64, 128, 128, 256, 256, 256, 256, 256, 256, 256, 256, 256]
    assert result.record["parameters"] == {"before": 14_987_210, "after": count(result.network)}
    assert f"{result.record['parameters']['after']:.1e}" == "5.4e+06"
    assert f"{result.record['macs']['before']:.2e}" == "3.13e+08"
    assert f"{result.record['macs']['after']:.2e}" == "2.06e+08"


@pytest.mark.parametrize(
    ("ratios", "skipped", "ten_thousands"),
    [
        ((0.1, 0.1, 0.1), (16, 20, 38, 54), 77),
        ((0.6, 0.3, 0.1), (16, 18, 20, 34, 38, 54), 73),
    ],
)
def test_pfec_resnet56(ratios, skipped, ten_thousands):
    """Li et al. 2017, table 1: 7.7e5 and 7.3e5 parameters (cut off, not rounded).

    Of each block but the skipped ones (numbers of layers) the first layer's filters go.
    """
    network = family("resnet", depth=56)
    first = [f"body.{unit}.f.{0 if unit == 0 else 2}" for unit in range(27)]
    scope = {layer: ratios[unit // 9] for unit, layer in enumerate(first) if 2 * unit + 2 not in skipped}
    result = remove(network, IMAGES, "l1_norm", Settings(scope=scope))
    assert count(result.network) // 10_000 == ten_thousands
    assert result.record["check"]["error"] < 1e-5


@pytest.mark.long
def test_resnet50_of_torchvision_to_half_its_macs():
    torch.manual_seed(0)
    network = torchvision.models.resnet50()
    before = copy.deepcopy(network.state_dict())
    pruned, edit = prune(network, torch.randn(1, 3, 64, 64), criterion="l1_norm", target="macs:0.5")
    assert type(pruned) is type(network)
    again = edits.apply(torchvision.models.resnet50(), edit)
    again.load_state_dict(pruned.state_dict())
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


@pytest.mark.long
@pytest.mark.parametrize("arch", ["mobilenet_v3_small", "shufflenet_v2_x0_5", "swin_t"])
def test_networks_of_torchvision_meet_a_target(arch):
    torch.manual_seed(0)
    result = remove(
        torchvision.models.get_model(arch), torch.randn(2, 3, 64, 64), "l1_norm", Settings(target="macs:0.7")
    )
    macs = result.record["macs"]
    assert macs["after"] / macs["before"] == pytest.approx(0.7, rel=0.02)
    assert result.record["check"]["error"] < 1e-5


@pytest.mark.parametrize("criterion", ["l1_norm", "fisher", "random"])
@pytest.mark.parametrize("scope", ["layer", "global"])
@pytest.mark.parametrize(("measure", "share"), [("macs", 0.5), ("params", 0.4), ("macs", 0.8)])
def test_targets_are_met_within_two_percent(criterion, scope, measure, share):
    settings = Settings(target=f"{measure}:{share}", scope=scope)
    result = remove(small((16, 32, 24)), IMAGES, criterion, settings, data=DATA)
    figure = result.record[{"macs": "macs", "params": "parameters"}[measure]]
    assert figure["after"] / figure["before"] == pytest.approx(share, rel=0.02)
    assert result.record["channels"]["after"] == sum(widths(result.network))


def test_macs_are_counted_by_hand():
    """3x3 convolutions of 32x32, 16x16 and 8x8 positions, then 4 x 10 of the head; half of each layer's channels go."""
    result = remove(small(), IMAGES, "l1_norm", Settings(ratio=0.5))
    assert widths(result.network) == [4, 8, 2]
    assert result.record["macs"] == {
        "before": 9 * (3 * 8 * 1024 + 8 * 16 * 256 + 16 * 4 * 64) + 40,
        "after": 9 * (3 * 4 * 1024 + 4 * 8 * 256 + 8 * 2 * 64) + 20,
    }
    assert result.record["widths"] == {"0": [8, 4], "4": [16, 8], "8": [4, 2]}


def test_the_least_scores_go_in_each_layer():
    network = small()
    result = remove(network, IMAGES, "l2_norm", Settings(ratio=0.25))
    for group, layer in zip(result.groups, ("0", "4", "8"), strict=True):
        norms = network.get_submodule(layer).weight.detach().flatten(1).norm(dim=1)
        assert group["layers"] == [layer]
        assert group["scores"] == pytest.approx(norms.tolist())
        assert group["kept"] == norms.argsort()[len(norms) // 4 :].sort().values.tolist()


def test_a_global_threshold_leaves_each_layer_its_floor():
    """One layer's filters are all far smaller than the others': a threshold alone would leave none of them."""
    network = small()
    network[5].weight.data.fill_(1e-3)
    by_scale = remove(network, IMAGES, "bn_scale", Settings(ratio=0.5, scope="global", floor=0.25))
    assert widths(by_scale.network)[1] == 4
    assert sum(widths(by_scale.network)) == 14
    # scores that mean nothing in another layer count relative to their own layer's
    network[4].weight.data *= 1e-3
    network[0].weight.data[:6] *= 0.1
    by_norm = remove(network, IMAGES, "l1_norm", Settings(ratio=0.2, scope="global"))
    assert widths(by_norm.network) == [2, 16, 4]


def test_a_list_prunes_what_it_names():
    result = remove(small(), IMAGES, "l1_norm", Settings(scope={"4": 0.75, "0": 0.0}))
    assert widths(result.network) == [8, 4, 4]


def test_energy_goes_from_the_layer_that_costs_most():
    """Layer "0" has by far the largest maps to move: half of it goes first, and the target needs some of the next, "4"."""
    result = remove(small(), IMAGES, "l1_norm", Settings(target="macs:0.45", order="energy", ratio=0.5))
    assert widths(result.network) == [4, 12, 4]


def test_a_floor_is_no_less_in_the_order_of_energy():
    """0.3 of 8 channels are 2.4, so 3 stay, as in scope=global."""
    result = remove(small(), IMAGES, "l1_norm", Settings(target="macs:0.3", order="energy", floor=0.3))
    assert widths(result.network) == [3, 9, 4]


@pytest.mark.parametrize("share", [0.45, 0.75])
def test_equal_widths_are_counted_once(share, monkeypatch):
    """Where single channels are worth too much each is tried in turn, and those of a layer are worth the same."""
    counted, own = [], Skeleton.parameters
    monkeypatch.setattr(Skeleton, "parameters", lambda self, kept: counted.append(kept) or own(self, kept))
    network = nn.Sequential(nn.Linear(3, 6), nn.ReLU(), nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    with pytest.raises(ValueError, match="single channels of this network are worth more"):
        remove(network, torch.randn(2, 3), "l1_norm", Settings(target=f"params:{share}", scope="global"))
    found = [tuple((number, len(left)) for number, left in kept.items()) for kept in counted]
    assert len(found) == len(set(found))


class OfItsOwnDevice(nn.Module):
    """Its forward makes a tensor and reads a number, which cannot be where nothing is on a device."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(6, 64), nn.Linear(64, 3)

    def forward(self, x):
        x = self.a(x).relu() * torch.arange(len(x), device="cpu")[:, None]
        return self.b(x) if x.sum() >= 0 else self.b(-x)


class ByDevice(OfItsOwnDevice):
    """Its forward goes another way where its tensors are on another device, as to a faster kernel."""

    def forward(self, x):
        return self.b(self.a(x)) if x.device.type == "cpu" else self.b(self.a(x)) @ x.new_ones(3, 500)


@pytest.mark.parametrize("kind", [OfItsOwnDevice, ByDevice])
def test_a_forward_that_is_another_without_a_device_is_counted(kind):
    result = remove(kind(), torch.randn(2, 6), "l1_norm", Settings(target="macs:0.5"))
    assert result.record["macs"] == {"before": 9 * 64, "after": 9 * 32}


ALIKE = [
    ("resnet", {"depth": 8}, ["stored", "checkpointed", "adjoint"]),
    ("revnet", {"depth": 26}, ["stored", "checkpointed", "reversible"]),
    ("revnet", {"depth": 38, "bottleneck": True}, ["stored", "checkpointed", "reversible"]),
    ("heunnet", {"depth": 4}, ["stored", "adjoint"]),
]


@pytest.mark.parametrize(("name", "settings", "strategies"), ALIKE)
def test_families_with_any_strategy_are_pruned_alike(name, settings, strategies):
    """A criterion that needs gradients sees the blocks inside a strategy's own autograd function."""
    found = []
    for backprop in strategies:
        network = family(name, backprop, **settings)
        result = remove(network, IMAGES, "fisher", Settings(ratio=0.5), data=DATA)
        assert result.record["check"]["error"] < 1e-5
        assert min(before - after for before, after in result.record["widths"].values()) > 0
        functional.cross_entropy(result.network.train()(IMAGES), LABELS).backward()
        assert all(p.grad is not None for p in result.network.parameters())
        found.append(result.edit)
    assert all(edit == found[0] for edit in found)


def test_a_pruned_network_is_saved_as_data():
    pruned, edit = prune(family("resnet", depth=14), IMAGES, ratio=0.4)
    file = io.BytesIO()
    torch.save({"edits": [edit], "model": pruned.state_dict()}, file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    again = edits.apply_all(family("resnet", depth=14), saved["edits"])
    again.load_state_dict(saved["model"])
    assert torch.equal(again.eval()(IMAGES), pruned.eval()(IMAGES))


class Halved(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return weight / 2


@pytest.mark.parametrize("criterion", ["l1_norm", "taylor_weight", "fisher"])
def test_parametrised_weights_are_pruned(criterion):
    network = small()
    nn.utils.parametrize.register_parametrization(network[4], "weight", Halved())
    pruned, _ = prune(network, IMAGES, criterion=criterion, ratio=0.5, data=DATA)
    assert pruned[4].weight.shape == (8, 4, 3, 3)


class Attending(nn.Module):
    """Attention in one operation, and weights that a hook sets in each forward."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(6, 8), nn.Linear(8, 3)
        for layer in (self.a, self.b):
            layer.weight_g = nn.Parameter(torch.rand(len(layer.weight), 1))
            layer.weight_v = nn.Parameter(layer.weight.detach().clone())
            del layer.weight
            layer.register_forward_pre_hook(
                lambda m, _: setattr(m, "weight", torch._weight_norm(m.weight_v, m.weight_g))
            )
        self.c, self.d = nn.Linear(3, 9), nn.Linear(9, 3)

    def forward(self, x):
        x = self.b(self.a(x).relu())
        x = functional.scaled_dot_product_attention(x, x, x)
        return self.d(self.c(x).relu()).mean(1)


@pytest.mark.parametrize("criterion", ["taylor_weight", "obd", "obs", "fisher"])
def test_gradients_of_attention_and_of_weights_that_hooks_set(criterion):
    torch.manual_seed(0)
    network, x = Attending(), torch.randn(4, 5, 6)
    scope = {"c": 0.5}
    pruned, _ = prune(network, x, criterion=criterion, scope=scope, data=[(x, torch.tensor([0, 1, 2, 0]))])
    assert pruned.c.out_features in (4, 5)
    copy.deepcopy(network)


@pytest.mark.parametrize("criterion", ["signed_sum", "bn_scale", "apoz", "taylor_activation", "taylor_weight", "obd"])
def test_the_network_is_as_it_was_and_two_prunings_go_on_from_each_other(criterion):
    network = small().train()
    before = copy.deepcopy(network.state_dict())
    once, first = prune(network, IMAGES, criterion=criterion, ratio=0.25, data=DATA)
    twice, second = prune(once, IMAGES, criterion=criterion, ratio=0.25, data=DATA)
    assert network.training
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    rebuilt = edits.apply_all(small(), [first, second])
    assert [tuple(p.shape) for p in rebuilt.parameters()] == [tuple(p.shape) for p in twice.parameters()]


def test_obs_moves_what_stays_so_that_the_loss_rises_less():
    torch.manual_seed(1)
    network = nn.Sequential(nn.Linear(6, 8), nn.Linear(8, 4)).double()
    inputs = torch.randn(200, 6, dtype=torch.float64)
    targets = network(inputs).detach()
    losses = {}
    for criterion in ("obs", "l2_norm"):
        pruned, _ = prune(
            network, inputs, criterion=criterion, ratio=0.4, data=[(inputs, targets)], loss_fn=functional.mse_loss
        )
        losses[criterion] = functional.mse_loss(pruned(inputs), targets).item()
    assert losses["obs"] < 0.9 * losses["l2_norm"]


# groups of which one goes whole; the other's channels are then single ones. First: the layer that is looked at
ONE_OF_TWO = [
    (0, [nn.Conv2d(3, 6, 3), nn.GroupNorm(2, 6), nn.ReLU(), nn.Conv2d(6, 4, 3)]),
    (
        1,
        [nn.Conv2d(3, 4, 1), nn.Conv2d(4, 6, 3, groups=2), nn.ReLU(), nn.Conv2d(6, 4, 3, groups=2), nn.Conv2d(4, 2, 1)],
    ),
]


@pytest.mark.parametrize(("layer", "layers"), ONE_OF_TWO, ids=["norm", "convolutions"])
def test_rounds_that_leave_one_of_two_groups_go_on_from_the_channels_before_the_first(layer, layers):
    whole = network = nn.Sequential(*layers)
    for ratio, left in ((0.25, 3), (0.5, 3), (0.7, 1)):
        network = remove(network, IMAGES, "l1_norm", Settings(ratio=ratio), whole=whole).network
        assert network[layer].out_channels == left


@pytest.mark.parametrize(
    "asked",
    [
        {"ratio": 0.6},
        {"ratio": 0.3},
        {"ratio": 0.45, "scope": "global", "floor": 0.3},
        {"scope": {"0": 0.5, "4": 0.75}},
        {"target": "macs:0.4"},
        {"target": "params:0.4", "scope": "global", "floor": 0.3},
        {"target": "macs:0.4", "order": "energy", "floor": 0.3},
    ],
)
def test_rounds_reach_what_one_pruning_would(asked):
    """Shares and floors are of the channels before the first round: rounded in each, they would add up to more."""
    settings, network, left = Settings(**asked), small((15, 31, 47)), 1.0
    whole = remove(network, IMAGES, "l1_norm", settings).record
    measure = "parameters" if "params" in asked.get("target", "") else "macs"
    for number in (1, 2, 3):
        step = remove(network, IMAGES, "l1_norm", settings.of_round(3, left, number), whole=small((15, 31, 47)))
        network, record = step.network, step.record
        left = record[measure]["after"] / whole[measure]["before"]
    if "target" in asked:
        assert left == pytest.approx(whole[measure]["after"] / whole[measure]["before"], rel=0.02)
    else:
        assert record["channels"]["after"] == whole["channels"]["after"]
    if asked.get("scope") != "global" and "order" not in asked:
        assert [after for _, after in record["widths"].values()] == pytest.approx(
            [after for _, after in whole["widths"].values()], abs=0 if "target" not in asked else 1
        )
    if "floor" in asked:
        assert all(after >= int(0.3 * n) for n, after in zip((15, 31, 47), widths(network), strict=True))


def test_the_record_is_plain_data():
    for settings in (Settings(ratio=0.5), Settings(scope={"4": 0.5}), Settings(target="macs:0.5", scope="global")):
        result = remove(small(), IMAGES, "l1_norm", settings)
        assert json.loads(json.dumps(result.record)) == result.record
        assert json.loads(json.dumps(result.groups)) == result.groups
