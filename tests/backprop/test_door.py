"""What a user's step, hook, type or call can get wrong: right, or one sentence that names it (cases A3, A4, A6 to A13)."""

import copy
import itertools
import random
import warnings

import pytest
import torch
from chain_networks import bottleneck, couplings, gradients, loss, same_bits, streams, worst
from door_steps import pairs, vectors
from torch import nn

from memexp.backprop import AdditiveCoupling, Chain, EulerStep, StepError, check
from memexp.backprop.check import Report
from memexp.memory.allocator import allocated


class OwnGenerator(nn.Linear):
    def __init__(self) -> None:
        super().__init__(4, 4)
        self.generator = torch.Generator().manual_seed(0)

    def forward(self, x):
        return super().forward(x) * torch.rand((), generator=self.generator)


class PythonRandom(nn.Linear):
    def forward(self, x):
        return super().forward(x) * random.random()


class Counter(nn.Linear):
    def __init__(self, *sizes) -> None:
        super().__init__(*sizes)
        self.calls = itertools.count(1)

    def forward(self, x):
        return super().forward(x) * next(self.calls)


@pytest.mark.parametrize("kind", [OwnGenerator, PythonRandom, Counter])
def test_a3_a_step_that_does_not_repeat_itself_is_named(kind):
    steps = pairs(4)
    steps[2].G = kind(4, 4) if kind is not OwnGenerator else kind()
    with pytest.raises(StepError, match=r"step 2 \(AdditiveCoupling\) gives different results"):
        Chain(copy.deepcopy(steps), "reversible", check=True)(*vectors())
    assert [s.repeatable for s in check(Chain(copy.deepcopy(steps), "reversible"), vectors()).steps] == [1, 1, 0, 1]
    value = loss(Chain(steps, "reversible", exact=True)(*vectors()))
    with pytest.raises(RuntimeError, match=r"step 2 .*torch.Generator of its own or from Python's random"):
        value.backward()


def test_a3_checking_changes_nothing():
    steps = couplings(4, boundary=1, dropout=0.3)
    plain, checked = (Chain(copy.deepcopy(steps), "reversible", check=how) for how in (False, True))
    assert same_bits(gradients(checked, streams()), gradients(plain, streams()))
    assert same_bits(list(checked.buffers()), list(plain.buffers()))


def test_a4_a_forward_hook_on_an_undone_step_is_refused_if_it_changes_streams():
    hooks = [
        lambda step: step.register_forward_hook(lambda m, x, y: (y[0] * 2, y[1])),
        lambda step: step.register_forward_hook(lambda m, x, y: y[0].mul_(2)[:0].tolist() or None),
        lambda step: step.register_forward_pre_hook(lambda m, x: (x[0] * 2, x[1])),
    ]
    for hook in hooks:
        steps = pairs(3)
        hook(steps[1])
        with pytest.raises(StepError, match=r"step 1 \(AdditiveCoupling\).*hook"):
            Chain(steps, "reversible")(*vectors())


def test_a4_a_hook_that_looks_on_is_called_once():
    steps, calls = pairs(3), []
    for step in steps:
        step.register_forward_hook(lambda *_: calls.append(1))
    gradients(Chain(steps, "reversible"), vectors())
    assert len(calls) == 3


@pytest.mark.parametrize("backprop", ["checkpointed", "reversible"])
def test_a4_hooks_that_autograd_honours_are_honoured(backprop):
    steps = pairs(4)
    for step in steps:
        step.register_full_backward_hook(lambda m, of_inputs, of_outputs: tuple(2 * g for g in of_inputs))
        step.register_full_backward_pre_hook(lambda m, of_outputs: tuple(3 * g for g in of_outputs))
        if backprop == "checkpointed":
            step.register_forward_hook(lambda m, x, y: (y[0] * 2, y[1]))
    expected = gradients(Chain(copy.deepcopy(steps)), vectors())
    assert worst(gradients(Chain(steps, backprop), vectors()), [g.clone() for g in expected]) < 1e-5


class Rounds(nn.Module):
    """Has attributes of its own that the engine's steps have, too."""

    def __init__(self) -> None:
        super().__init__()
        self.f = nn.Linear(4, 4)
        self.rounding, self.undo, self.approximate, self.grid = "up", 3, "none", None

    def forward(self, a, b):
        return b, a + self.f(b)

    def inverse(self, a, b):
        return b - self.f(a), a


def test_a6_attributes_of_a_step_are_its_own():
    steps = [Rounds() for _ in range(3)]
    expected = gradients(Chain(copy.deepcopy(steps)), vectors())
    assert worst(gradients(Chain(steps, "reversible"), vectors()), expected) < 1e-5
    gradients(Chain(steps, "stored", exact=True), vectors())
    assert {step.rounding for step in steps} == {"up"}


def test_a6_a_coupling_in_two_chains_keeps_to_the_grid_of_each():
    steps = pairs(4)
    exact = Chain(steps, "reversible", exact=True)
    value = loss(exact(*vectors()))
    Chain(steps, "reversible")(*vectors())
    value.backward()  # would be found by its fingerprint
    found = [p.grad for p in exact.parameters()]
    assert same_bits(found, gradients(Chain(copy.deepcopy(steps), "stored", exact=True), vectors())[2:])


class NoInverse(nn.Module):
    def forward(self, x, y):
        return 4 * x, 4 * y

    def inverse(self, x, y):
        return 8 * x, 8 * y


def test_a6_a_wrong_inverse_is_measured_and_warned_of():
    network = Chain([*pairs(1), NoInverse(), *pairs(2)], "reversible")
    report = check(network, vectors())
    assert isinstance(report, Report)
    assert [step.name for step in report.steps][1] == "step 1 (NoInverse)"
    assert report.steps[1].inverse_error == pytest.approx(31)
    assert max(step.inverse_error for step in report.steps if "Coupling" in step.name) < 1e-6
    assert max(step.gradient_error for step in report.steps if "Coupling" in step.name) < 1e-5
    assert "3.1e+01" in str(report)
    with pytest.warns(UserWarning, match=r"computed back with a relative error of .*check\(chain, inputs\)"):
        loss(network(*vectors())).backward()


def test_a6_check_leaves_no_trace():
    network = Chain(couplings(4, boundary=1, dropout=0.3), "reversible")
    before, state = [b.clone() for b in network.buffers()], torch.get_rng_state()
    report = check(network, streams())
    assert same_bits(list(network.buffers()), before)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(p.grad is None for p in network.parameters())
    assert [step.inverse_error is None for step in report.steps] == [False, True, False, False]
    assert all(step.repeatable and step.gradient_error < 1e-4 for step in report.steps)


class Masked(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)
        self.register_buffer("mask", torch.ones(512, 512))
        self.register_buffer("count", torch.zeros(2**16))
        self.moves = False

    def forward(self, x):
        if self.moves:
            self.count += 1
        return self.layer(x) * self.mask[0, 0] + self.count[0]


def test_a9_a_large_buffer_is_copied_only_if_it_changes():
    network = Chain(pairs(6, Masked), "reversible")
    loss(network(*vectors())).backward()
    assert allocated(lambda: network(*vectors()))[0] < network[0].F.mask.nbytes / 4
    for step in network:
        step.F.moves = True
    stored = Chain(copy.deepcopy(list(network)))
    assert worst(gradients(network, vectors()), [g.clone() for g in gradients(stored, vectors())]) < 1e-5
    assert same_bits(list(network.buffers()), list(stored.buffers()))
    assert network[0].F.count[0] == 1


def test_a10_drift_under_autocast_is_measured_and_warned_of_once():
    torch.manual_seed(0)
    steps = [AdditiveCoupling(bottleneck(8), bottleneck(8)) for _ in range(82)]
    inputs = streams(channels=8, batch=8, size=12)

    def train(network, autocast):
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            value = loss(network(*inputs))
        value.backward()

    network = Chain(steps, "reversible")
    with pytest.warns(UserWarning, match=r"step 0 .*relative error of .*exact=true") as seen:
        train(network, autocast=True)
    assert len(seen) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train(network, autocast=True)
        train(Chain(steps, "reversible"), autocast=False)
        train(Chain(steps, "reversible", exact=True), autocast=True)


@pytest.mark.parametrize("exact", [False, True])
def test_a11_the_inverse_of_a_chain(exact):
    network = Chain(couplings(4), "reversible", exact=exact)
    inputs = [x.detach() for x in streams()]
    with torch.no_grad():
        outputs = network(*inputs)
        before = [b.clone() for b in network.buffers()]
        back = network.inverse(*outputs)
    assert same_bits(list(network.buffers()), before)
    expected = [network.strategy.rounding.enter(x) for x in inputs] if exact else inputs
    assert worst(list(back), expected) <= (0 if exact else 1e-5)
    with pytest.raises(StepError, match=r"step 1 .*has no inverse"):
        Chain(couplings(3, boundary=1)).inverse(*inputs)


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("inner", ["stored", "reversible", "checkpointed"])
def test_a11_a_chain_of_chains(exact, inner):
    torch.manual_seed(0)
    parts = [couplings(3, dropout=0.3) for _ in range(3)]
    flat = Chain(copy.deepcopy([step for part in parts for step in part]), "stored", exact=exact)
    nested = Chain([Chain(part, inner) for part in copy.deepcopy(parts)], "reversible", exact=exact)
    expected, found = gradients(flat, streams()), gradients(nested, streams())
    assert same_bits(found, expected) if exact else worst(found, expected) < 1e-4
    assert same_bits(list(nested.buffers()), list(flat.buffers()))


class Nearly(nn.Module):
    """A user's own step with an approximate inverse, not of residual form."""

    approximate = True

    def __init__(self) -> None:
        super().__init__()
        self.f = nn.Linear(4, 4)

    def forward(self, x):
        return 2 * x + 0.3 * torch.tanh(self.f(x))

    def inverse(self, y):
        return (y - 0.3 * torch.tanh(self.f(y / 2))) / 2


@pytest.mark.parametrize("residual", [False, True])
def test_a12_a_users_approximate_inverse_is_refined(residual):
    torch.manual_seed(0)
    steps = [Nearly() for _ in range(3)]
    if residual:
        steps = [EulerStep(nn.Sequential(nn.Linear(4, 4), nn.Tanh()), 0.3) for _ in range(3)]
    network = Chain(steps).double()
    x = vectors(torch.float64)[:1]
    expected = [g.clone() for g in gradients(network, x)]
    errors = []
    for refine in (0, 1, 30):
        errors.append(worst(gradients(Chain(steps, "adjoint", refine=refine), x), expected))
    assert errors[0] > 3 * errors[1] > 0
    assert errors[2] < 1e-9


@pytest.fixture
def one_process():
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("strategy", ["checkpointed", "reversible"])
@pytest.mark.parametrize("where", ["step", "branch", "root"])
def test_a2_a_step_that_is_sharded_by_itself_is_refused_by_name(one_process, strategy, where):
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    chain = Chain([AdditiveCoupling(nn.Linear(4, 4), nn.Linear(4, 4)) for _ in range(2)], backprop=strategy)
    fully_shard({"step": chain[0], "branch": chain[0].G, "root": chain}[where], mesh=init_device_mesh("cpu", (1,)))
    x = torch.randn(2, 4), torch.randn(2, 4)
    if where == "root":
        sum(y.sum() for y in chain(*x)).backward()
        assert all(p.grad is not None for p in chain.parameters())
        return
    with pytest.raises(StepError, match=r"step 0 \(.*AdditiveCoupling\) .* shard at the root only"):
        chain(*x)
    with chain.using("stored"):
        sum(y.sum() for y in chain(*x)).backward()
