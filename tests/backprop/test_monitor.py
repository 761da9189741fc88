"""Reconstruction error, gradient error and angle; that measuring leaves no trace."""

import math
from contextlib import nullcontext

import pytest
import torch
from chain_networks import couplings, loss, same_bits, streams
from torch import nn

from memexp.backprop import Chain, EulerStep
from memexp.backprop.measures import angle, relative_error
from memexp.backprop.monitor import Comparison, compare, gradient


def figures(network, inputs, autocast=False):
    def evaluate():
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            return loss(network(*inputs))

    return compare(network, evaluate)


def test_exact_has_no_error_and_plain_reversible_a_small_one():
    torch.manual_seed(0)
    steps = couplings(8, boundary=3, dropout=0.1)
    assert figures(Chain(steps, "reversible", exact=True), streams()) == Comparison(0.0, 0.0, 0.0)
    assert figures(Chain(steps, "stored"), streams()) == Comparison(0.0, 0.0, 0.0)
    plain = figures(Chain(steps, "reversible"), streams())
    mixed = figures(Chain(steps, "reversible"), streams(), autocast=True)
    assert 0 < plain.reconstruction_error < 1e-5
    assert 0 < plain.gradient_error < 1e-3
    assert plain.gradient_angle < 0.1
    assert 0 < mixed.gradient_error < 1e-2


def test_adjoint_errors_fall_with_refinement():
    torch.manual_seed(0)
    steps = [EulerStep(nn.Sequential(nn.Linear(4, 4), nn.Tanh()), 1 / 8) for _ in range(8)]
    x = [torch.randn(3, 4, requires_grad=True)]
    found = [figures(Chain(steps, "adjoint", refine=refine), x) for refine in (0, 2)]
    assert found[0].reconstruction_error > 10 * found[1].reconstruction_error > 0
    assert found[0].gradient_error > 10 * found[1].gradient_error > 0


def test_measuring_leaves_no_trace():
    network = nn.ModuleList([Chain(couplings(4, dropout=0.2), "reversible")])
    first = network[0]
    loss(first(*streams())).backward()
    state, buffers = torch.get_rng_state(), [b.clone() for b in network.buffers()]
    grads = [p.grad.clone() for p in network.parameters()]
    compare(network, lambda: loss(first(*streams())))
    assert torch.equal(torch.get_rng_state(), state)
    assert same_bits(list(network.buffers()), buffers)
    assert same_bits([p.grad for p in network.parameters()], grads)
    assert first.monitor is None
    assert type(first.strategy).__name__ == "Reversible"


class Assigns(nn.Module):
    """Keeps what it has seen, in the way that `keep` says."""

    def __init__(self, keep):
        super().__init__()
        self.layer, self.keep, self.calls = nn.Linear(4, 4), keep, 0
        self.register_buffer("mean", torch.zeros(4))
        self.register_buffer("late", None)

    def forward(self, x):
        self.keep(self, x.detach().mean(0))
        return self.layer(x) - self.mean


def registers(module, mean):
    if not module.calls:
        module.register_buffer("seen", mean, persistent=False)
    module.calls += 1
    module.seen += mean


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize(
    "keep",
    [
        lambda module, mean: setattr(module, "mean", 0.9 * module.mean + mean),
        lambda module, mean: module.mean.add_(mean),
        lambda module, mean: setattr(module, "late", mean),
        lambda module, mean: setattr(module, "latest", mean),
        lambda module, mean: setattr(module, "calls", module.calls + 1),
        registers,
    ],
)
def test_what_a_forward_assigns_is_what_it_was(keep, fails):
    network = nn.Sequential(*(Assigns(keep) for _ in range(2)))
    before = [(dict(vars(m)), dict(m._buffers), [b.clone() for b in m.buffers()]) for m in network]

    def loss():
        value = network(torch.ones(3, 4)).sum()
        if fails:
            raise RuntimeError("here")
        return value

    for _ in range(2):
        with pytest.raises(RuntimeError, match="here") if fails else nullcontext():
            gradient(network, loss)
        for module, (attributes, buffers, values) in zip(network, before, strict=True):
            assert vars(module) == attributes
            assert module._buffers.keys() == buffers.keys()
            assert all(module._buffers[name] is buffer for name, buffer in buffers.items())
            assert same_bits(list(module.buffers()), values)


def test_a_lazy_layer_keeps_the_sizes_that_it_found():
    network = nn.Sequential(nn.LazyLinear(4), nn.LazyBatchNorm1d())
    gradient(network, lambda: network(torch.ones(3, 5)).sum())
    assert (network[0].in_features, network[1].num_features) == (5, 4)


def test_using_another_strategy_keeps_the_function():
    network = Chain(couplings(3), "reversible", exact=True, exact_bits=12)
    with network.using("checkpointed", every=2):
        assert network.strategy.rounding.bits == 12
        assert network.strategy.every == 2
    assert network.strategy.plan(list(network), ())[0] == "undone"


@pytest.mark.parametrize("degrees", [0.0, 1e-6, 1.0, 60.0, 90.0, 180.0])
def test_angle(degrees):
    t = math.radians(degrees)
    a, b = [torch.tensor([2.0, 0.0]).double()], [torch.tensor([math.cos(t), math.sin(t)], dtype=torch.float64) * 5]
    assert angle(a, b) == pytest.approx(degrees, rel=1e-9, abs=1e-12)


def test_relative_error():
    assert (
        relative_error([torch.tensor([3.0]), torch.tensor([1.0])], [torch.tensor([3.0]), torch.tensor([4.0])]) == 3 / 5
    )
