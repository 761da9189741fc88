"""ReduceNet: its sizes, which activations vanish and when, and the published code's artefact."""

import math
from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional

from memexp import models
from memexp.backprop import Chain
from memexp.models.vanishing import ArtefactReLU, VanishingReLU, returning, set_lambda, vanishing


def build(backprop: str = "stored", **settings) -> nn.Module:
    chain = partial(Chain, backprop=backprop)
    return models.create("reducenet", classes=10, shape=(3, 32, 32), chain=chain, **({"depth": 8} | settings))


def linear(network: nn.Module) -> bool:
    """Whether the network, in eval and float64, is affine."""
    network = network.double().eval()
    x, y = torch.randn(2, 1, 3, 32, 32, dtype=torch.float64)
    with torch.no_grad():
        return torch.allclose(network(x) + network(y), 2 * network((x + y) / 2), atol=1e-9)


def block_parameters(inputs: int, outputs: int, expansion: int) -> int:
    inside = expansion * outputs
    return inputs * inside * 9 + 2 * inside + inside * outputs + 2 * outputs


@pytest.mark.parametrize("expansion", [1, 2, 4])
@pytest.mark.parametrize(("depth", "n"), [(20, 3), (56, 9)])
def test_parameters_are_those_of_the_block(depth, n, expansion):
    expected = 3 * 16 * 9 + 2 * 16 + 64 * 10 + 10
    for inputs, outputs in ((16, 16), (16, 32), (32, 64)):
        expected += block_parameters(inputs, outputs, expansion)
        expected += (n - 1) * block_parameters(outputs, outputs, expansion)
    assert sum(p.numel() for p in build(depth=depth, expansion=expansion).parameters()) == expected


def test_the_plain_baseline_of_depth_29_has_as_many_convolutions_as_depth_56_deployed():
    network = build(depth=29, plain=True)
    assert sum(isinstance(module, nn.Conv2d) for module in network.modules()) == 28
    assert not any(isinstance(module, VanishingReLU) for module in network.modules())


@pytest.mark.parametrize("settings", [{}, {"vanish": "all"}, {"vanish": "schedule", "schedule": [None, 1, [0.5]]}])
def test_padding_once_gives_maps_of_the_same_size(settings):
    shapes = []
    for padding in ("each", "once"):
        network = build(padding=padding, **settings)
        shapes.append(network.body(network.stem(torch.randn(2, 3, 32, 32))).shape)
        padded = [m.padding for m in network.modules() if isinstance(m, nn.Conv2d) and any(m.padding)]
        assert len(padded) == (1 if padding == "once" else 4)
    assert shapes[0] == shapes[1] == (2, 64, 8, 8)


@pytest.mark.parametrize(
    ("settings", "value", "expected"),
    [
        ({"vanish": "all"}, 0.0, True),
        ({"vanish": "all", "padding": "once"}, 0.0, True),
        ({"vanish": "all"}, 0.1, False),
        ({"vanish": "all", "inplace_relu": True}, 0.0, False),
        ({"vanish": "inner"}, 0.0, False),
        ({"vanish": "schedule", "schedule": [1, 1, 1]}, 0.0, True),
        ({"vanish": "schedule", "schedule": [1, [None], 1]}, 0.0, False),
    ],
)
def test_what_is_left_is_affine_only_if_every_activation_vanished(settings, value, expected):
    torch.manual_seed(0)
    network = build(**settings)
    network.set_lambda(value)
    assert linear(network) == expected


def test_inside_a_block_the_activation_vanishes_and_the_relu_after_its_sum_stays():
    network = build()
    network.set_lambda(0.0)
    block = network.body[0].double().eval()
    x, y = torch.randn(2, 1, 16, 8, 8, dtype=torch.float64)
    with torch.no_grad():
        inner = [block.f(z) for z in (x, y, (x + y) / 2)]
        torch.testing.assert_close(inner[0] + inner[1], 2 * inner[2])
        torch.testing.assert_close(block(x), (block.f(x) + x).relu())


def test_lambda_follows_the_cosine_from_1_to_exactly_0():
    values = [vanishing(step, 11) for step in range(13)]
    assert values[0] == 1.0
    assert values[5] == pytest.approx(0.5)
    assert values[10:] == [0.0, 0.0, 0.0]
    assert values == sorted(values, reverse=True)
    assert values[3] == pytest.approx((1 + math.cos(0.3 * math.pi)) / 2)
    assert vanishing(0, 1) == 0.0
    for step, total in ((-1, 10), (0, 0)):
        with pytest.raises(ValueError, match="steps count from 0"):
            vanishing(step, total)
    rising = [returning(step, 11) for step in range(11)]
    assert (rising[0], rising[10]) == (0.0, 0.0)
    assert rising[5] == pytest.approx(1.0)
    assert rising[2] == pytest.approx((1 - math.cos(0.4 * math.pi)) / 2)


@pytest.mark.parametrize("value", [1.0, 0.7, 0.25, 0.0])
def test_the_activation_is_the_papers_mixture(value):
    x = torch.randn(1000, dtype=torch.float64)
    act = VanishingReLU().double()
    act.set(value)
    torch.testing.assert_close(act(x), value * functional.relu(x) + (1 - value) * x, rtol=1e-12, atol=1e-12)
    kept = VanishingReLU(inplace=True).double()
    kept.set(value)
    leaf = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(kept(leaf + 0).sum(), leaf)
    torch.testing.assert_close(gradient, torch.where(x > 0, 1.0, 1.0 - value).double())


@pytest.mark.parametrize("value", [1.0, 0.5, 0.0])
def test_the_published_code_is_a_relu_for_every_lambda(value):
    x = torch.randn(1000)
    act = ArtefactReLU()
    act.set(value)
    torch.testing.assert_close(act(x.clone()), x.relu())


def test_an_early_activation_is_gone_after_its_share_of_the_training():
    early, late = VanishingReLU(until=0.5), VanishingReLU()
    network = nn.Sequential(early, late)
    seen = []
    for step in range(101):
        set_lambda(network, vanishing(step, 101))
        seen.append((early.lambda_, late.lambda_))
    assert seen[0] == (1.0, 1.0)
    assert seen[25] == pytest.approx((0.5, vanishing(25, 101)))
    assert seen[49][0] > 0
    assert [value for value, _ in seen[51:]] == [0.0] * 50
    assert seen[100] == (0.0, 0.0)


def test_lambda_is_saved_with_the_weights():
    network = build(vanish="schedule", schedule=[0.5, 1, None])
    network.set_lambda(0.3)
    with torch.device("meta"):
        again = build(vanish="schedule", schedule=[0.5, 1, None])
    again.load_state_dict(network.state_dict(), assign=True)
    values = [[m.lambda_ for m in n.modules() if isinstance(m, VanishingReLU)] for n in (network, again)]
    assert values[0] == values[1]
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(again.eval()(x), network.eval()(x))


@pytest.mark.parametrize("backprop", ["checkpointed", "budget"])
def test_other_strategies_give_the_stored_gradient(backprop):
    results = []
    for name in ("stored", backprop):
        torch.manual_seed(0)
        network = build(name)
        network.set_lambda(0.4)
        loss = functional.cross_entropy(network(torch.randn(4, 3, 32, 32)), torch.arange(4))
        loss.backward()
        results.append([p.grad for p in network.parameters()])
    for expected, found in zip(*results, strict=True):
        assert torch.equal(expected, found)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"depth": 21}, "depth=21 is not a ReduceNet"),
        ({"depth": 20, "plain": True, "vanish": "all"}, "plain=true has no activation that vanishes"),
        ({"vanish": "some"}, "vanish='some': use inner, all or schedule"),
        ({"padding": "none"}, "padding='none': use each or once"),
        ({"vanish": "schedule"}, "vanish=schedule needs one"),
        ({"schedule": [1, 1, 1]}, "the others take none"),
        ({"vanish": "schedule", "schedule": [1, 1]}, "one entry for each of 3 stages"),
        ({"vanish": "schedule", "schedule": [1, [1, 1], 1]}, "a list of 1, one a block"),
        ({"vanish": "schedule", "schedule": [1, 0.0, 1]}, "no share of the training"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        build(**settings)


@pytest.mark.parametrize("value", [-0.1, 1.5, float("nan")])
def test_lambda_outside_of_0_to_1_is_refused(value):
    with pytest.raises(ValueError, match="it falls from 1"):
        build().set_lambda(value)
