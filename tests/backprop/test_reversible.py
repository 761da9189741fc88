"""Memory laws of the strategies, measured by the allocator's own events, and the plans that lead to them."""

import copy
import gc
from itertools import pairwise

import pytest
import torch
from chain_networks import basic, couplings, loss, streams
from torch import nn

from memexp.backprop import AdditiveCoupling, Chain, EulerStep, HeunStep
from memexp.backprop.plan import groups
from memexp.memory.allocator import allocated


def measure(steps, backprop, inputs, **options):
    """Bytes kept after forward, and the peak through forward and backward, in streams."""
    network = Chain(steps, backprop=backprop, **options)
    loss(network(*inputs)).backward()  # warm-up: gradients are there from now on
    kept = allocated(lambda: loss(network(*inputs)))[1]
    for p in network.parameters():
        p.grad = None
    peak = allocated(lambda: loss(network(*inputs)).backward())[0]
    return kept / inputs[0].nbytes, peak / inputs[0].nbytes


def test_garbage_of_one_measurement_is_none_of_the_next():
    """It was freed there, and the figure was lower by it."""

    def wasteful():
        cycle = [torch.empty(1000)]
        cycle.append(cycle)
        gc.collect()  # so that it is not noticed at once

    assert allocated(wasteful) == (4000, 4000)
    assert allocated(gc.collect) == (0, 0)


@pytest.mark.parametrize("options", [{}, {"exact": True}])
def test_reversible_memory_does_not_grow_with_units(options):
    inputs = streams(batch=4, channels=8, size=16)
    torch.manual_seed(0)
    figures = []
    for units in (3, 9, 30):
        steps = [AdditiveCoupling(basic(8), basic(8)) for _ in range(units)]
        for p in nn.ModuleList(steps).parameters():
            p.requires_grad_(p.ndim < 4)  # gradients of weights are no activations
        figures.append(measure(steps, "reversible", inputs, **options))
    kept, peaks = zip(*figures, strict=True)
    assert kept[0] == kept[1] == kept[2]
    # gradients of BN weights are all that grows: 8 vectors of 8 floats a unit
    for units, peak in zip((9, 30), peaks[1:], strict=True):
        assert (peak - peaks[0]) * inputs[0].nbytes <= (units - 3) * 8 * 8 * 4


def test_dropout_costs_random_states_only():
    inputs = streams(batch=4, channels=8, size=32)
    kept = [measure(couplings(units, 8, dropout=0.1), "reversible", inputs)[0] for units in (2, 12)]
    assert (kept[1] - kept[0]) * inputs[0].nbytes == 10 * 2 * torch.get_rng_state().nbytes


@pytest.mark.parametrize("refine", [0, 2])
def test_adjoint_memory_does_not_grow_with_steps(refine):
    x = streams(batch=4, channels=8, size=16)[:1]
    for heun in (False, True):
        figures = []
        for count in (4, 10, 30):
            fs = [nn.Sequential(nn.Tanh(), nn.BatchNorm2d(8, affine=False)) for _ in range(count)]
            steps = [HeunStep(a, b, 0.1) for a, b in pairwise(fs)] if heun else [EulerStep(f) for f in fs]
            figures.append(measure(steps, "adjoint", x, refine=refine))
        assert figures[0] == figures[1] == figures[2]


def test_stored_and_checkpointed_memory_grow_as_said():
    inputs = streams(batch=4, channels=8, size=16)
    stored, every, fourth = (
        [measure(couplings(units, 8), backprop, inputs, **options)[0] for units in (8, 16)]
        for backprop, options in (("stored", {}), ("checkpointed", {}), ("checkpointed", {"every": 4}))
    )
    assert stored[1] - stored[0] > 8 * 8
    assert every[1] - every[0] == pytest.approx(8 * 2, abs=0.1)
    assert fourth[1] - fourth[0] == pytest.approx(2 * 2, abs=0.1)


def test_plans():
    steps = couplings(5, boundary=2)
    assert Chain(steps, "reversible").strategy.plan(steps, ()) == [
        "undone",
        "undone",
        "checkpointed",
        "undone",
        "stored",
    ]
    assert Chain(steps, "checkpointed", every=2).strategy.plan(steps, ())[:3] == [
        "checkpointed",
        "continued",
        "checkpointed",
    ]
    assert Chain(steps).strategy.plan(steps, ()) == ["stored"] * 5


class Planned:
    """A strategy of a user's: any plan."""

    rounding = None
    refine = 0

    def __init__(self, plan):
        self._plan = plan

    def plan(self, steps, streams):
        return self._plan


@pytest.mark.parametrize(
    "plan",
    [
        ["stored", "undone", "stored", "undone", "checkpointed", "undone"],
        ["undone", "checkpointed", "continued", "undone", "undone", "stored"],
        ["undone", "undone", "undone", "undone", "undone", "undone"],
        ["checkpointed", "continued", "continued", "stored", "stored", "checkpointed"],
        ["undone", "stored", "stored", "stored", "checkpointed", "undone"],
    ],
)
def test_any_plan_gives_the_same_gradients(plan):
    torch.manual_seed(0)
    steps = couplings(6, dropout=0.1)
    grads = []
    for chosen in (["stored"] * 6, plan):
        network = Chain(copy.deepcopy(steps))
        network.strategy = Planned(chosen)
        torch.manual_seed(3)
        inputs = streams()
        loss(network(*inputs)).backward()
        grads.append([x.grad for x in (*inputs, *network.parameters())])
    for found, expected in zip(grads[1], grads[0], strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        (["stored"], "a plan of 1 words for 2 steps"),
        (["stored", "kept"], "plan for step 1 is 'kept'"),
        (["continued", "stored"], "continues step 0"),
        (["stored", "continued"], "continues step 1"),
        (["undone", "undone"], r"step 1 \(AdditiveCoupling\) cannot be undone"),
    ],
)
def test_a_plan_that_does_not_fit(plan, message):
    with pytest.raises(ValueError, match=message):
        groups(couplings(2, boundary=1), plan)
