"""Every family here: narrowed against masked, and what a narrowed one must still do."""

from collections.abc import Callable
from typing import Any

import equality
import pytest
import torch
from torch import nn

from memexp import channels, edits, models
from memexp.backprop import Chain

FAMILIES = {
    "resnet-20": dict(name="resnet", depth=20),
    "resnet-bottleneck": dict(name="resnet", depth=29, bottleneck=True),
    "resnet-simple": dict(name="resnet", depth=4, kind="simple"),
    "resnet-ode": dict(name="resnet", depth=50, kind="ode", units=[2, 2], channels=[16, 16, 32]),
    "resnet-ode-tied": dict(name="resnet", depth=50, kind="ode", units=[3, 3], channels=[16, 16, 32], tied=True),
    "revnet-38": dict(name="revnet", depth=38),
    "revnet-bottleneck": dict(name="revnet", depth=38, units=[2, 2], channels=[16, 16, 32], bottleneck=True),
    "heunnet": dict(name="heunnet", depth=4),
    "vgg16": dict(name="vgg16"),
}


def build(name: str, chain: Callable[..., nn.Module] = Chain) -> nn.Module:
    torch.manual_seed(0)
    return equality.randomise(models.create(classes=10, shape=(3, 32, 32), chain=chain, **FAMILIES[name]))


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.long) if n == "vgg16" else n for n in FAMILIES])
def test_narrowed_equals_masked(name: str) -> None:
    network, inputs = build(name), torch.randn(2, 3, 32, 32)
    graph = channels.trace(network, inputs)
    frozen = {key for key in graph.frozen if key[1] < 2}
    convolutions = [n for n, p in network.named_parameters() if p.ndim == 4]
    # all but the images and the classes can be removed
    assert frozen <= {(convolutions[0], 1), *((n, 0) for n in list(dict(network.named_parameters()))[-2:])}
    for ratio in (0.1, 0.7):
        assert equality.difference(network, graph, equality.choose(graph, ratio), inputs)[1] < 1e-5
    for ratio in (0.3, 0.5):
        _, error = equality.difference(network.double(), graph, equality.choose(graph, ratio), inputs.double())
        assert error < 1e-12


@pytest.mark.long
def test_vgg16_without_normalisation() -> None:
    torch.manual_seed(0)
    network = equality.randomise(models.create("vgg16", classes=10, shape=(3, 32, 32), chain=Chain, layout="imagenet"))
    graph = channels.trace(network, torch.randn(1, 3, 32, 32))
    assert [g.size for g in graph.groups] == [64, 64, 128, 128, *[256] * 3, *[512] * 6, 4096, 4096]
    first = next(m for m in graph.groups[12].members if m.name == "classifier.0.weight")
    assert first.indices[2] == tuple(range(2 * 49, 3 * 49))
    assert equality.difference(network, graph, equality.choose(graph, 0.7), torch.randn(1, 3, 32, 32))[1] < 1e-5


def test_zeros_of_a_shortcut_follow() -> None:
    network, inputs = build("resnet-20"), torch.randn(2, 3, 32, 32)
    graph = channels.trace(network, inputs)
    kept = equality.choose(graph, 0.5)
    edit = channels.narrow_edit(graph, kept)
    narrowed = edits.apply(build("resnet-20"), edit)
    pads = [(m.before, m.after) for m in narrowed.modules() if hasattr(m, "before")]
    assert sorted(tuple(v.values()) for v in edit["attributes"].values()) == sorted(pads)
    assert pads != [(8, 8), (16, 16)]


@pytest.mark.parametrize("name", ["revnet-38", "revnet-bottleneck"])
def test_a_narrowed_revnet_is_still_undone_exactly(name: str) -> None:
    network, inputs = build(name), torch.randn(2, 3, 32, 32)
    graph = channels.trace(network, inputs)
    narrowed, _ = equality.difference(network, graph, equality.choose(graph, 0.4), inputs)
    narrowed = narrowed.double().train()
    x = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    gradients = []
    for strategy in ("stored", "reversible"):
        narrowed.zero_grad()
        with narrowed.body.using(strategy):
            narrowed(x).square().mean().backward()
        gradients.append([p.grad.clone() for p in narrowed.parameters()])
    assert all(torch.allclose(a, b, rtol=1e-9, atol=1e-11) for a, b in zip(*gradients, strict=True))


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("revnet-bottleneck", {"backprop": "reversible"}),
        ("revnet-bottleneck", {"backprop": "reversible", "exact": True}),
        ("resnet-simple", {"backprop": "adjoint"}),
        ("resnet-20", {"backprop": "checkpointed"}),
    ],
)
def test_the_strategy_of_a_chain_does_not_matter(name: str, options: dict[str, Any]) -> None:
    inputs = torch.randn(2, 3, 32, 32)
    expected = channels.trace(build(name), inputs)
    assert channels.trace(build(name, lambda steps: Chain(steps, **options)), inputs) == expected
