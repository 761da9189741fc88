"""Euler and Heun steps and the adjoint: orders of convergence, evaluations, tied weights, every strategy's rules."""

import copy
import math
from itertools import pairwise

import pytest
import torch
from chain_networks import basic, gradients, loss, same_bits, worst
from torch import nn

from memexp.backprop import AdditiveCoupling, Chain, EulerStep, HeunStep


@pytest.fixture(autouse=True)
def fp64():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def functions(count, width=6):
    """tanh layers whose weights are smooth in depth."""
    torch.manual_seed(0)
    a, b, bias = torch.randn(width, width) / 2, torch.randn(width, width) / 2, torch.randn(width)
    built = []
    for n in range(count):
        f = nn.Sequential(nn.Linear(width, width), nn.Tanh())
        t = n / max(1, count - 1)
        with torch.no_grad():
            f[0].weight.copy_(math.cos(t) * a + math.sin(t) * b)
            f[0].bias.copy_(bias * (1 - t / 2))
        built.append(f)
    return built


def euler(fs):
    return [EulerStep(f, 1 / len(fs)) for f in fs]


def heun(fs):
    return [HeunStep(f0, f1, 1 / len(fs)) for f0, f1 in pairwise(fs)]


def start(width=6, batch=5):
    torch.manual_seed(1)
    return torch.randn(batch, width, requires_grad=True)


def relative_error(steps, **options):
    """Of the adjoint's whole gradient against autograd's, and of the reconstructed start."""
    x = start()
    stored, adjoint = Chain(steps), Chain(steps, backprop="adjoint", **options)
    expected, found = [torch.cat([g.flatten() for g in gradients(c, [x])]).clone() for c in (stored, adjoint)]
    with torch.no_grad():
        back = stored(x)
        for step in reversed(steps):
            back = step.inverse(back, options.get("refine", 0))
    return ((found - expected).norm() / expected.norm()).item(), ((back - x).norm() / x.norm()).item()


def slope(depths, errors):
    x, y = torch.tensor(depths).log(), torch.tensor(errors).log()
    return (((x - x.mean()) * (y - y.mean())).sum() / (x - x.mean()).square().sum()).item()


@pytest.mark.parametrize(("make", "low", "high"), [(euler, -1.2, -0.9), (heun, -4.0, -2.0)])
def test_order_of_convergence(make, low, high):
    depths = [8.0, 16.0, 32.0, 64.0, 128.0, 256.0]
    errors = [relative_error(make(functions(int(n)))) for n in depths]
    for column in zip(*errors, strict=True):
        assert low < slope(depths, list(column)) < high


@pytest.mark.parametrize("make", [euler, heun])
def test_refinement_converges_to_stored(make):
    rough, back = relative_error(make(functions(8)))
    fine, fine_back = relative_error(make(functions(8)), refine=20)
    assert rough > 1e-4 or back > 1e-4
    assert fine < 1e-10
    assert fine_back < 1e-10


@pytest.mark.parametrize("make", [euler, heun])
def test_gradcheck_with_refinement(make):
    network = Chain(make(functions(4, 3)), backprop="adjoint", refine=30)
    assert torch.autograd.gradcheck(network, start(3, 2))


def count_evaluations(fs):
    counts = [0] * len(fs)
    for index, f in enumerate(fs):
        f.register_forward_hook(lambda *_, index=index: counts.__setitem__(index, counts[index] + 1))
    return counts


def test_evaluations_of_euler_are_three_a_step_and_refinement_adds_one():
    for refine in (0, 1, 3):
        fs = functions(5)
        counts = count_evaluations(fs)
        gradients(Chain(euler(fs), backprop="adjoint", refine=refine), [start()])
        assert counts == [3 + refine] * 5


def test_heun_takes_over_values_of_the_step_above():
    fs = functions(5)
    counts = count_evaluations(fs)
    gradients(Chain(heun(fs), backprop="adjoint"), [start()])
    # three for each of its steps, less the value at x~_{n+1} that the step above has evaluated
    assert counts == [3, 5, 5, 5, 3]


def test_tied_weights_take_over_values_too_and_sum_over_their_uses():
    (f,) = functions(1)
    steps = [EulerStep(f, 1 / 5) for _ in range(5)]
    counts = count_evaluations([f])
    adjoint = gradients(Chain(steps, backprop="adjoint"), [start()])
    assert counts == [5 + 1 + 5]
    untied = Chain(copy.deepcopy(step) for step in steps)
    gradients(untied, [start()])
    total = sum(step.f[0].weight.grad for step in untied)
    refined = gradients(Chain(steps, backprop="adjoint", refine=40), [start()])
    torch.testing.assert_close(refined[1], total, rtol=1e-10, atol=1e-12)
    assert worst(adjoint, refined) < 0.2


def test_values_are_not_taken_over_where_random_numbers_are_drawn():
    fs = [nn.Sequential(*f, nn.Dropout(0.5)) for f in functions(4)]
    stored, adjoint = Chain(heun(fs)), Chain(heun(fs), backprop="adjoint", refine=40)
    expected = gradients(stored, [start()])
    state = torch.get_rng_state()
    assert worst(gradients(adjoint, [start()]), [g.clone() for g in expected]) < 1e-10
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("make", [euler, heun])
@pytest.mark.parametrize("momentum", [0.1, None])
def test_batch_statistics_move_once(make, momentum):
    torch.manual_seed(0)
    fs = [basic(4) for _ in range(6)]
    for module in nn.ModuleList(fs).modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = momentum
    x = torch.randn(3, 4, 5, 5, requires_grad=True)
    stored, adjoint = Chain(make(copy.deepcopy(fs))), Chain(make(copy.deepcopy(fs)), backprop="adjoint", refine=2)
    for network in (stored, adjoint):
        gradients(network, [x])
    assert same_bits(list(adjoint.buffers()), list(stored.buffers()))
    assert all(module.training for module in adjoint.modules())


def test_batch_statistics_normalise_in_every_pass():
    """Were running statistics used in the adjoint pass, refinement would converge to something else."""
    torch.manual_seed(0)
    fs = [basic(4) for _ in range(6)]
    x = torch.randn(3, 4, 5, 5, requires_grad=True)
    expected = [g.clone() for g in gradients(Chain(euler(fs)), [x])]
    errors = []
    for refine in (0, 40):
        found = gradients(Chain(euler(fs), backprop="adjoint", refine=refine), [x])
        errors.append(worst(found[:1], expected[:1]))
    assert errors[1] < 1e-8 < errors[0]


def test_short_runs_are_stored():
    fs = functions(6)
    counts = count_evaluations(fs)
    steps = [*euler(fs[:2]), nn.Tanh(), *euler(fs[2:])]
    gradients(Chain(steps, backprop="adjoint", min_steps=3), [start()])
    assert counts == [1, 1, 3, 3, 3, 3]


@pytest.mark.parametrize("make", [euler, heun])
def test_frozen_functions_inputs_without_grad_and_one_accumulation(make):
    fs = functions(5)
    fs[1].requires_grad_(False)
    stored, adjoint = Chain(make(fs)), Chain(make(fs), backprop="adjoint", refine=40)
    for x in (start(), start().detach()):
        expected = [g.clone() for g in gradients(stored, [x])]
        assert worst(gradients(adjoint, [x]), expected) < 1e-9


def test_double_backward_is_refused():
    x = start()
    with pytest.raises(RuntimeError, match=r"double backward.*step 2 \(EulerStep\)"):
        torch.autograd.grad(loss(Chain(euler(functions(3)), backprop="adjoint")(x)), x, create_graph=True)


def test_a_function_that_changes_shape_is_named():
    with pytest.raises(ValueError, match=r"step 0 \(HeunStep\): branch f1 gives shape \(5, 3\)"):
        Chain([HeunStep(nn.Linear(6, 6), nn.Linear(6, 3))])(start())


def test_additive_couplings_are_for_reversible():
    with pytest.raises(ValueError, match="for backprop=reversible"):
        Chain([AdditiveCoupling(nn.Identity(), nn.Identity())], backprop="adjoint")


@pytest.mark.parametrize("option", [{"refine": -1}, {"min_steps": 1.5}])
def test_options(option):
    with pytest.raises(ValueError, match="use an integer of at least 0"):
        Chain(euler(functions(1)), backprop="adjoint", **option)


class Timed(nn.Module):
    """One function of all steps, at the time that it has been given."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.t = nn.Linear(4, 4), nn.Linear(4, 4), 0.0

    def forward(self, x):
        return torch.tanh(self.a(x) + self.t * self.b(x))


class TimedStep(EulerStep):
    def __init__(self, f, scale, t):
        super().__init__(f, scale)
        self.t = t

    def forward(self, x, **context):
        self.f.t = self.t
        return super().forward(x, **context)


def by_hook(f, t):
    step = EulerStep(f, 1 / 5)
    step.register_forward_pre_hook(lambda module, _: setattr(module.f, "t", t))
    return step


def by_hook_for_two(f, t):
    step = HeunStep(f, f, 1 / 5)
    step.register_forward_pre_hook(lambda module, _: setattr(module.f0, "t", t))
    return step


@pytest.mark.parametrize(
    "make",
    [lambda f, t: TimedStep(f, 1 / 5, t), by_hook, by_hook_for_two, lambda f, t: by_hook(f, torch.tensor(t))],
    ids=["step", "hook", "heun", "tensor"],
)
def test_a_shared_function_has_the_time_of_the_step_that_is_undone(make):
    """It had that of the step that ran last, whatever the step that set it."""
    torch.manual_seed(0)
    f, x = Timed().double(), torch.randn(3, 4, dtype=torch.float64)
    steps, found = [make(f, n / 5) for n in range(5)], []
    for options in ({"backprop": "stored"}, {"backprop": "adjoint", "refine": 60}):
        y = Chain(steps, **options)(x.clone().requires_grad_())
        f.t = 7.0
        found.append(torch.autograd.grad(y.square().sum(), list(f.parameters())))
        assert f.t == 7.0
    for own, stored in zip(found[1], found[0], strict=True):
        torch.testing.assert_close(own, stored, rtol=1e-10, atol=1e-12)
