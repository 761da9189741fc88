"""`exact`: bitwise equal gradients and weights, the range watch, and branches that are not deterministic."""

import random

import pytest
import torch
from chain_networks import Offset, basic, bottleneck, chain, couplings, gradients, loss, same_bits, streams
from torch import nn

from memexp.backprop import AdditiveCoupling, Chain
from memexp.backprop.rounding import Rounding


@pytest.mark.parametrize("bits", [1, 10, 16, 23])
def test_rounds_to_the_nearest_multiple(bits):
    rounding = Rounding(bits)
    x = torch.randn(1000) * rounding.limit / 4
    grid = rounding.round(x).double() * 2**bits
    assert torch.equal(grid, grid.round())
    assert (rounding.round(x).double() - x.double()).abs().max() <= 2.0 ** -(bits + 1)


def test_a_sum_on_the_grid_is_undone_bit_for_bit():
    torch.manual_seed(0)
    rounding = Rounding(16)
    x, r = rounding.enter(torch.randn(10**5) * 100), rounding.round(torch.randn(10**5) * 30)
    kept = (x + r).abs() < rounding.limit
    assert torch.equal(((x + r) - r)[kept].view(torch.int32), x[kept].view(torch.int32))
    assert not torch.equal((torch.randn(10**5) + r) - r, torch.randn(10**5))


def test_negative_zero_does_not_enter():
    assert torch.equal(
        torch.signbit(Rounding(16).enter(torch.tensor([-0.0, -1e-9, -1.0]))).long(), torch.tensor([0, 0, 1])
    )


def test_gradient_passes_straight_through():
    x = torch.randn(10, dtype=torch.bfloat16, requires_grad=True)
    y = Rounding(4)(x)
    assert y.dtype is torch.float32
    y.backward(torch.arange(10.0))
    assert torch.equal(x.grad, torch.arange(10.0).bfloat16())


def train(network, steps, autocast, lr=0.1):
    optimizer = torch.optim.SGD(network.parameters(), lr=lr, momentum=0.9, weight_decay=2e-4)
    for seed in range(steps):
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            value = loss(network(*[x.detach() for x in streams(seed=seed, channels=8, batch=4, size=8)]))
        value.backward()
        optimizer.step()
    return [p.detach() for p in network.parameters()] + list(network.buffers())


def check_bits(units, kind, autocast, steps, lr=0.1):
    torch.manual_seed(0)
    parts = [AdditiveCoupling(kind(8), kind(8)) for _ in range(units)]
    parts[units // 2] = AdditiveCoupling(kind(8), kind(8), nn.AvgPool2d(3, 1, 1))
    networks = [
        chain(parts, "stored", exact=True),
        chain(parts, "checkpointed", exact=True, every=2),
        chain(parts, "reversible", exact=True),
    ]
    inputs = streams(channels=8, batch=4, size=8)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        outputs = [network(*inputs) for network in networks]
    grads = [
        torch.autograd.grad(loss(y), inputs + list(n.parameters())) for n, y in zip(networks, outputs, strict=True)
    ]
    assert same_bits(grads[1], grads[0])
    assert same_bits(grads[2], grads[0])
    weights = [train(network, steps, autocast, lr) for network in networks]
    assert same_bits(weights[1], weights[0])
    assert same_bits(weights[2], weights[0])


@pytest.mark.parametrize("kind", [basic, bottleneck])
@pytest.mark.parametrize("autocast", [False, True])
def test_reversible_and_stored_agree_to_the_last_bit(kind, autocast):
    check_bits(units=6, kind=kind, autocast=autocast, steps=3)


@pytest.mark.long
@pytest.mark.parametrize("autocast", [False, True])
def test_reversible_and_stored_agree_to_the_last_bit_when_deep(autocast):
    check_bits(units=82, kind=bottleneck, autocast=autocast, steps=10, lr=1e-4)  # more, and streams leave the range


@pytest.mark.parametrize("exact", [False, True])
def test_without_exact_the_bits_differ(exact):
    """The test above can fail: plain reversible backprop drifts."""
    torch.manual_seed(0)
    steps = couplings(6)
    stored, reversible = chain(steps, "stored", exact=exact), chain(steps, "reversible", exact=exact)
    assert same_bits(gradients(reversible, streams()), gradients(stored, streams())) == exact


def test_streams_are_float32_under_autocast():
    network = Chain(couplings(2), backprop="reversible", exact=True)
    with torch.autocast("cpu", torch.bfloat16):
        outputs = network(*[x.bfloat16() for x in streams()])
        plain = Chain(couplings(2), backprop="reversible")(*[x.bfloat16() for x in streams()])
    assert {y.dtype for y in (*outputs, *plain)} == {torch.float32}


@pytest.mark.parametrize("backprop", ["stored", "checkpointed", "reversible"])
@pytest.mark.parametrize("grad", [True, False])
def test_leaving_the_range_is_an_error_that_names_the_step_and_a_smaller_k(backprop, grad):
    steps = couplings(3)
    steps[1] = AdditiveCoupling(Offset(400.0), Offset(0.0))
    network = Chain(steps, backprop=backprop, exact=True)
    with (
        torch.set_grad_enabled(grad),
        pytest.raises(ValueError, match=r"step 1 \(Add.*reaches 40.*below 256.*exact_bits=14"),
    ):
        network(*streams())
    Chain(steps, backprop=backprop, exact=True, exact_bits=14)(*streams())


def test_evaluation_undoes_nothing_and_may_leave_the_range():
    network = Chain([AdditiveCoupling(Offset(400.0), Offset(0.0))], backprop="reversible", exact=True).eval()
    with torch.no_grad():
        assert max(y.max() for y in network(*streams())) > 256


def test_values_that_are_not_finite_are_an_error():
    steps = [AdditiveCoupling(Offset(float("nan")), Offset(0.0))]
    with pytest.raises(ValueError, match=r"step 0 .*not finite"):
        Chain(steps, backprop="reversible", exact=True)(*streams())


class Noise(nn.Module):
    """Draws from a generator that the engine does not know."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, x):
        return self.weight * x * random.random()


@pytest.mark.parametrize("place", [0, 1])
def test_a_branch_that_is_not_deterministic_is_named(place):
    steps = couplings(4)
    steps[place].F = Noise()
    value = loss(Chain(steps, backprop="reversible", exact=True)(*streams()))
    with pytest.raises(RuntimeError, match=rf"step {place} \(AdditiveCoupling\): a branch is not deterministic"):
        value.backward()


def test_a_branch_that_changed_its_mind_is_found():
    steps = couplings(4)
    steps[1].G = nn.Tanh()
    value = loss(Chain(steps, backprop="reversible", exact=True)(*streams()))
    steps[1].G.forward = torch.sigmoid
    with pytest.raises(RuntimeError, match=r"step 0 .* to step 2 .*not evaluated as in the first pass"):
        value.backward()


class Turned(torch.autograd.Function):
    """Its backward pass, not its forward, has a product of matrices."""

    @staticmethod
    def forward(ctx, x, weight):
        ctx.save_for_backward(x, weight)
        return x * weight

    @staticmethod
    def backward(ctx, grad):
        x, weight = ctx.saved_tensors
        return grad @ torch.diag(weight), (grad * x).sum(0)


class Turning(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.full((8,), 0.37))

    def forward(self, x):
        return Turned.apply(x, self.weight)


def turned(grads):
    return tuple((grad @ torch.full((8, 8), 0.37)).float() for grad in grads)


@pytest.mark.parametrize("hooked", [False, True])
@pytest.mark.parametrize("backprop", ["reversible", "checkpointed"])
@pytest.mark.parametrize("inside", [True, False])
def test_gradients_are_cast_as_backward_is_not_as_the_first_pass_was(backprop, inside, hooked):
    def gradients(backprop):
        chain = Chain([AdditiveCoupling(Turning(), Turning()) for _ in range(3)], backprop, exact=True)
        if hooked:
            chain[1].register_full_backward_pre_hook(lambda step, grads: turned(grads))
            chain[2].register_full_backward_hook(lambda step, grads, _: turned(grads))
        x = torch.randn(4, 8, generator=torch.Generator().manual_seed(0))
        with torch.autocast("cpu", torch.bfloat16):
            y, z = chain(x, x.flip(0))
        with torch.autocast("cpu", torch.bfloat16, enabled=inside):
            (y * z).sum().backward()
        return [p.grad for p in chain.parameters()]

    assert all(map(torch.equal, gradients(backprop), gradients("stored")))
