"""Whatever a recomputation reads is declared, or refused by name (cases A1, A2, A5)."""

import copy
from itertools import pairwise

import pytest
import torch
from chain_networks import basic, couplings, loss, same_bits, streams, worst
from torch import nn

from memexp.backprop import AdditiveCoupling, Chain, EulerStep, HeunStep

STRATEGIES = [
    ("checkpointed", {}),
    ("checkpointed", {"every": 3}),
    ("checkpointed", {"every": 2, "exact": True}),
    ("reversible", {}),
    ("reversible", {"exact": True}),
]
recomputing = pytest.mark.parametrize(("backprop", "options"), STRATEGIES)


class Reader(nn.Module):
    """A branch that reads a keyword twice."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x, context, scale=1.0):
        return torch.tanh(self.layer(x) + context) * context * scale


def vectors(count=2):
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(3, 4, generator=generator, requires_grad=True) for _ in range(count)]


def with_context(network, inputs, frozen=False):
    encoder = nn.Linear(4, 4)
    with torch.no_grad():
        encoder.weight.copy_(torch.eye(4) / 2)
        encoder.bias.zero_()
    mask = torch.randn(3, 4, generator=torch.Generator().manual_seed(2))
    context = encoder(mask)
    loss(network(*inputs, context=context, scale=0.5)).backward()
    return [p.grad for p in (*encoder.parameters(), *inputs, *network.parameters()) if p.requires_grad]


@recomputing
def test_a1_a_keyword_reaches_branches_and_its_gradient_is_that_of_stored(backprop, options):
    torch.manual_seed(0)
    steps = [AdditiveCoupling(Reader(), nn.Tanh()) for _ in range(2)]
    steps += [AdditiveCoupling(nn.Linear(4, 4), Reader()), AdditiveCoupling(Reader(), Reader(), nn.Identity())]
    steps += [AdditiveCoupling(Reader(), Reader()) for _ in range(3)]
    exact = {"exact": True} if options.get("exact") else {}
    stored, other = Chain(copy.deepcopy(steps), **exact), Chain(copy.deepcopy(steps), backprop, **options)
    expected, found = with_context(stored, vectors()), with_context(other, vectors())
    assert all(g.abs().sum() > 0 for g in expected[:2])
    if options.get("exact") or backprop == "checkpointed":
        assert same_bits(found, expected)
    assert worst(found, expected) < 1e-4


@pytest.mark.parametrize("heun", [False, True])
def test_a1_a_keyword_of_euler_and_heun_steps(heun):
    torch.manual_seed(0)
    fs = [Reader() for _ in range(4)]
    steps = [HeunStep(a, b, 0.1) for a, b in pairwise(fs)] if heun else [EulerStep(f, 0.1) for f in fs]
    stored, adjoint = Chain(copy.deepcopy(steps)), Chain(copy.deepcopy(steps), "adjoint", refine=30)
    assert worst(with_context(adjoint, vectors(1)), with_context(stored, vectors(1))) < 1e-5


class Own(nn.Module):
    """A user's own invertible step."""

    def __init__(self) -> None:
        super().__init__()
        self.f = Reader()

    def forward(self, a, b, *, context):
        return b, a + self.f(b, context)

    def inverse(self, a, b, *, context):
        return b - self.f(a, context), a


def test_a1_a_keyword_of_a_users_own_step():
    torch.manual_seed(0)
    steps = [Own() for _ in range(4)]
    stored, reversible = Chain(copy.deepcopy(steps)), Chain(copy.deepcopy(steps), "reversible")
    values = []
    for network in (stored, reversible):
        context = torch.ones(3, 4, requires_grad=True)
        inputs = vectors()
        loss(network(*inputs, context=context)).backward()
        values.append([context.grad, *(x.grad for x in inputs), *(p.grad for p in network.parameters())])
    assert worst(values[1], values[0]) < 1e-5


@recomputing
def test_a1_the_keyword_alone_needs_a_gradient(backprop, options):
    steps = nn.ModuleList([AdditiveCoupling(Reader(), Reader()) for _ in range(3)]).requires_grad_(False)
    exact = {"exact": True} if options.get("exact") else {}
    found = []
    for network in (Chain(steps, **exact), Chain(steps, backprop, **options)):
        context = torch.ones(3, 4, requires_grad=True)
        loss(network(*[x.detach() for x in vectors()], context=context)).backward()
        found.append(context.grad)
    torch.testing.assert_close(found[1], found[0], rtol=1e-4, atol=1e-6)


def test_a1_a_keyword_that_no_step_takes_is_named():
    with pytest.raises(ValueError, match=r"no step takes the keyword contxt .*AdditiveCoupling"):
        Chain([AdditiveCoupling(Reader(), Reader())])(*vectors(), contxt=torch.ones(4))


def test_a1_a_keyword_changed_before_backward_is_an_error():
    network = Chain([AdditiveCoupling(Reader(), Reader()) for _ in range(2)], "checkpointed")
    context = torch.ones(3, 4)
    value = loss(network(*vectors(), context=context))
    context.mul_(2)
    with pytest.raises(RuntimeError, match=r"step [01] .* the keyword tensor context was changed in place"):
        value.backward()


class Undeclared(nn.Module):
    def __init__(self, kind: str) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)
        self.hidden = [nn.Linear(4, 4)]  # a plain list: its layers are not registered
        self.kind = kind
        self.context = torch.ones(4, requires_grad=True)

    def forward(self, x):
        if self.kind == "layer":
            return self.hidden[0](self.layer(x))
        context = self.context if self.kind == "leaf" else self.result
        return torch.tanh(self.layer(x)) * context


@recomputing
@pytest.mark.parametrize("kind", ["layer", "leaf", "result"])
@pytest.mark.parametrize("frozen", [False, True])
def test_a1_what_is_not_declared_is_refused_by_name(backprop, options, kind, frozen):
    steps = [AdditiveCoupling(nn.Linear(4, 4), nn.Linear(4, 4)) for _ in range(4)]
    steps[1].F = branch = Undeclared(kind)
    branch.result = branch.context * 2
    if frozen:
        branch.requires_grad_(False)
    value = loss(Chain(steps, backprop, **options)(*vectors()))
    with pytest.raises(ValueError, match=r"step [01] \(AdditiveCoupling\).*gradient would be lost.*context=t"):
        value.backward()


@recomputing
def test_a1_what_is_not_declared_gets_its_gradient_where_nothing_is_recomputed(backprop, options):
    """The lower steps need no gradient of their own, so nothing of theirs is undone or recomputed."""
    steps = [AdditiveCoupling(nn.Linear(4, 4), nn.Linear(4, 4)) for _ in range(5)]
    nn.ModuleList(steps[:3]).requires_grad_(False)
    steps[0].F = Undeclared("leaf").requires_grad_(False)
    inputs = [x.detach() for x in vectors()]
    exact = {"exact": True} if options.get("exact") else {}
    found = []
    for network in (Chain(steps, **exact), Chain(steps, backprop, **options)):
        steps[0].F.context.grad = None
        loss(network(*inputs)).backward()
        found.append(steps[0].F.context.grad)
    torch.testing.assert_close(found[1], found[0], rtol=1e-4, atol=1e-6)


def test_a1_what_the_first_branch_reads_is_found_where_nothing_below_needs_a_gradient():
    step = AdditiveCoupling(Undeclared("leaf").requires_grad_(False), nn.Linear(4, 4))
    network = Chain([step, AdditiveCoupling(nn.Tanh(), nn.Tanh())], "reversible")
    value = loss(network(*[x.detach() for x in vectors()]))
    with pytest.raises(ValueError, match=r"step 0 \(AdditiveCoupling\).*gradient would be lost"):
        value.backward()


@recomputing
@pytest.mark.parametrize("split", [False, True])
def test_a2_functional_call_with_other_parameters(backprop, options, split):
    torch.manual_seed(0)
    steps = couplings(5, boundary=2)
    exact = {"exact": True} if options.get("exact") else {}
    found = []
    for network in (Chain(copy.deepcopy(steps), **exact), Chain(copy.deepcopy(steps), backprop, **options)):
        own = dict(network.named_parameters())
        flat = torch.cat([p.flatten() for p in own.values()])
        parts = (1.5 * flat).split([p.numel() for p in own.values()])
        scaled = {n: part.view_as(p) if split else 1.5 * p for (n, p), part in zip(own.items(), parts, strict=True)}
        loss(torch.func.functional_call(network, scaled, tuple(streams()))).backward()
        found.append([p.grad for p in network.parameters()])
    assert worst(found[1], found[0]) <= (1e-4 if backprop == "reversible" and not exact else 0)


@recomputing
def test_a2_a_parameter_replaced_before_backward(backprop, options):
    steps = couplings(3)
    exact = {"exact": True} if options.get("exact") else {}
    found = []
    for network in (Chain(copy.deepcopy(steps), **exact), Chain(copy.deepcopy(steps), backprop, **options)):
        first = list(network.parameters())
        value = loss(network(*streams()))
        network[0].F[2].weight = nn.Parameter(torch.zeros(4, 4, 3, 3))
        value.backward()
        found.append([p.grad for p in first])
        assert network[0].F[2].weight.abs().sum() == 0
    assert worst(found[1], found[0]) <= (1e-4 if backprop == "reversible" and not exact else 0)


@recomputing
def test_a2_data_replaced_before_backward_is_an_error(backprop, options):
    network = Chain(couplings(3), backprop, **options)
    value = loss(network(*streams()))
    network[0].F[2].weight.data = torch.zeros(4, 4, 3, 3)
    with pytest.raises(RuntimeError, match=r"step 0.*changed in place between forward and backward"):
        value.backward()


@recomputing
def test_a2_parametrizations_that_are_cached(backprop, options):
    def branch():
        layer = nn.utils.parametrizations.weight_norm(nn.Conv2d(4, 4, 3, padding=1))
        return nn.Sequential(layer, nn.Tanh())

    torch.manual_seed(0)
    steps = [AdditiveCoupling(branch(), branch()) for _ in range(3)]
    exact = {"exact": True} if options.get("exact") else {}
    found = []
    for network in (Chain(copy.deepcopy(steps), **exact), Chain(copy.deepcopy(steps), backprop, **options)):
        with nn.utils.parametrize.cached():
            loss(network(*streams())).backward()
        found.append([p.grad for p in network.parameters()])
    assert worst(found[1], found[0]) <= (1e-4 if backprop == "reversible" and not exact else 0)


@recomputing
def test_a8_a_parameter_frozen_before_backward_gets_no_gradient(backprop, options):
    steps = couplings(3)
    exact = {"exact": True} if options.get("exact") else {}
    found = []
    for network in (Chain(copy.deepcopy(steps), **exact), Chain(copy.deepcopy(steps), backprop, **options)):
        value = loss(network(*streams()))
        network[1].requires_grad_(False)
        value.backward()
        found.append([p.grad for p in network.parameters()])
    assert [g is None for g in found[0]] == [g is None for g in found[1]]
    kept = [[g for g in grads if g is not None] for grads in found]
    assert worst(kept[1], kept[0]) <= (1e-4 if backprop == "reversible" and not exact else 0)


@pytest.mark.parametrize("exact", [False, True])
def test_a5_what_a_hook_keeps_of_a_recomputation_stays_as_it_was(exact):
    network = Chain(couplings(5), "reversible", exact=exact)
    kept = []
    for step in network:
        for branch in (step.F, step.G):
            branch.register_forward_pre_hook(lambda _, inputs: kept.append((inputs[0], inputs[0].detach().clone())))
    loss(network(*streams())).backward()
    assert len(kept) == 10 + 8
    assert all(torch.equal(x, copy) for x, copy in kept)


@recomputing
def test_random_numbers_and_buffers_of_a_shortcut_are_replayed(backprop, options):
    def unit():
        shortcut = nn.Sequential(nn.Dropout(0.5), nn.utils.parametrizations.spectral_norm(nn.Conv2d(4, 4, 1)))
        return AdditiveCoupling(basic(4), basic(4), shortcut)

    torch.manual_seed(0)
    steps = [unit(), *couplings(2), unit()]
    exact = {"exact": True} if options.get("exact") else {}
    found = []
    for network in (Chain(copy.deepcopy(steps), **exact), Chain(copy.deepcopy(steps), backprop, **options)):
        torch.manual_seed(5)
        loss(network(*streams())).backward()
        found.append([p.grad for p in network.parameters()] + list(network.buffers()))
    assert worst([f.float() for f in found[1]], [f.float() for f in found[0]]) <= (
        1e-4 if backprop == "reversible" and not exact else 0
    )
