"""The simple network, HeunNet and the staged ODE network; depth doubling and untying."""

from functools import partial

import pytest
import torch
from torch import nn

import memexp
from memexp import models
from memexp.backprop import Chain
from memexp.config import ConfigError
from memexp.models.warm_start import warm_start

CIFAR = (3, 32, 32)


def make(name: str = "resnet", backprop: str = "stored", classes: int = 10, shape=CIFAR, **settings) -> nn.Module:
    torch.manual_seed(0)
    return models.create(name, classes=classes, shape=shape, chain=partial(Chain, backprop=backprop), **settings)


def count(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


@pytest.mark.parametrize("depth", [2, 7, 64])
def test_parameters_of_the_simple_network_euler_and_heun(depth):
    assert count(make(kind="simple", depth=depth)) == 1882 + 4704 * depth
    assert count(make("heunnet", depth=depth)) == 1882 + 4704 * depth


@pytest.mark.parametrize("kind", ["simple", "heunnet"])
def test_at_the_start_every_function_is_zero(kind):
    network = make("heunnet", depth=4) if kind == "heunnet" else make(kind="simple", depth=4)
    x = torch.randn(2, *CIFAR)
    assert torch.equal(network(x), network.head(network.stem(x)))


def test_the_layout_of_resnet_101_has_22_functions_in_stage_3_of_scale_1_22():
    with torch.device("meta"):
        network = make(kind="ode", depth=101, classes=1000, shape=(3, 224, 224))
    assert [len(stage) for stage in network.functions] == [2, 3, 22, 2]
    scales = [step.scale for step in network.body if hasattr(step, "scale")]
    assert scales == [1 / n for n in (2, 3, 22, 2) for _ in range(n)]


SMALL = {"kind": "ode", "depth": 50, "units": [3, 4], "channels": [8, 4, 8]}


def test_tied_functions_are_one_and_their_gradient_is_the_sum_over_the_uses():
    tied, untied = make(tied=True, **SMALL).double(), make(**SMALL).double()
    assert count(tied) < count(untied)
    warm_start(untied, tied)
    x = torch.randn(4, *CIFAR, dtype=torch.float64)
    for network in (tied, untied):
        network(x).square().sum().backward()
    for stage, copies in zip(tied.functions, untied.functions, strict=True):
        for name, p in stage[0].named_parameters():
            total = sum(f.get_parameter(name).grad for f in copies)
            torch.testing.assert_close(p.grad, total, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("settings", [{"kind": "simple", "depth": 6}, SMALL, {**SMALL, "tied": True}])
def test_the_adjoint_trains_what_stored_trains(settings):
    """Not the same gradient, but one that is close for smooth steps of scale 1/n, for every parameter."""
    stored, adjoint = make(**settings).double(), make(backprop="adjoint", **settings).double()
    x = torch.randn(8, *CIFAR, dtype=torch.float64)
    for network in (stored, adjoint):
        network(x).logsumexp(1).sum().backward()
    for name, q in adjoint.named_parameters():
        assert q.grad is not None, name
    head = [network.head[-1].weight.grad for network in (stored, adjoint)]
    torch.testing.assert_close(*head, rtol=1e-9, atol=1e-12)
    for key, value in stored.state_dict().items():
        if "running" in key or "batches" in key:  # moved once, by the same statistics
            torch.testing.assert_close(adjoint.state_dict()[key], value, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", ["resnet", "heunnet"])
def test_a_deeper_network_repeats_the_functions_of_the_trained_one(name):
    kind = {"kind": "simple"} if name == "resnet" else {}
    trained, deep = make(name, depth=2, **kind), make(name, depth=6, **kind)
    for p in trained.parameters():
        nn.init.normal_(p)
    warm_start(deep, trained)
    for i, f in enumerate(deep.functions[0]):
        for a, b in zip(f.state_dict().values(), trained.functions[0][i // 3].state_dict().values(), strict=True):
            assert torch.equal(a, b)
    assert torch.equal(deep.stem[0].weight, trained.stem[0].weight)
    assert torch.equal(deep.head[-1].weight, trained.head[-1].weight)


def test_depths_that_are_no_multiple_and_other_networks_are_refused():
    with pytest.raises(ValueError, match="stage 1 has 5 functions, no multiple of the trained 2"):
        warm_start(make(kind="simple", depth=5), make(kind="simple", depth=2))
    with pytest.raises(
        ValueError, match=r"stage 1 are tied, and the trained one has 2 that differ; set model\.tied=false"
    ):
        warm_start(make(tied=True, **SMALL), make(**SMALL))
    warm_start(make(tied=True, **SMALL), make(tied=True, **SMALL))
    with pytest.raises(ValueError, match=r"init_from is for model=heunnet"):
        warm_start(make(kind="simple", depth=4), make(depth=8))
    with pytest.raises(ValueError, match="the trained network differs"):
        warm_start(make(kind="simple", depth=4), make(kind="simple", depth=4, classes=7))


def test_a_run_starts_from_another(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    small = ["model=heunnet", "model.depth=2", "max_steps=2", "dataset.limit=64", "dataset.test_limit=20", "device=cpu"]
    memexp.run(memexp.compose(small), tmp_path / "first")
    network = memexp.build_model(memexp.compose(["model=heunnet", "model.depth=4", "model.init_from=first"]))
    saved = torch.load(tmp_path / "first" / "checkpoints" / "last.pt", weights_only=True)["model"]
    assert torch.equal(network.state_dict()["body.2.f1.0.weight"], saved["body.0.f1.0.weight"])
    with pytest.raises(ConfigError, match=r"model\.init_from: there is no run in 'nowhere'"):
        memexp.build_model(memexp.compose(["model=heunnet", "model.init_from=nowhere"]))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["model=resnet", "model.kind=simple", "model.tied=true"], "kind=simple has a depth only"),
        (["model=resnet", "model.tied=true"], "tied=true is for kind=ode"),
        (["model=resnet", "model.kind=ode"], "kind=ode knows 50, 101"),
        (["model=heunnet", "model.depth=1"], "model.depth: 1 is not allowed"),
        (["model=heunnet", "dataset.image_size=8"], "too small"),
        (["model=heunnet", "backprop=reversible"], "not valid for model=heunnet"),
    ],
)
def test_what_cannot_be_is_explained(overrides, message):
    with pytest.raises(ConfigError, match=message):
        memexp.build_model(memexp.compose(overrides))
