"""Steps of a Chain come and go as layers of an nn.Sequential do, and what is said of them goes with them (case A11)."""

import operator

import pytest
import torch
from torch import nn

from memexp.backprop import AdditiveCoupling, Chain, StepError
from memexp.backprop.budget import Budget
from memexp.memory.planner import store


def pairs(count):
    return [AdditiveCoupling(nn.Linear(4, 4), nn.Linear(4, 4)) for _ in range(count)]


def test_a11_a_chain_is_a_container():
    steps = pairs(4)
    network = Chain(steps, "reversible", exact=True, exact_bits=12)
    middle = network[1:3]
    assert isinstance(middle, Chain)
    assert list(middle) == steps[1:3]
    assert middle.strategy == network.strategy
    (extra,) = pairs(1)
    assert len(network.append(extra)) == 5
    assert network[-1] is extra
    assert list(network.insert(0, extra).extend(pairs(1)))[:2] == [extra, steps[0]]
    del network[0]
    network[0] = extra
    assert list(network._modules) == list("012345")
    assert network[0] is extra
    budget = Chain(steps, "budget", stored=frozenset({0, 2}))[2:]
    assert budget.strategy.stored == frozenset({0})
    with pytest.raises(StepError, match="step 6"):
        network.append(torch.tanh)
    assert len(network) == 6


def named():
    network = Chain(pairs(4), "budget", stored={1, 3})
    network.rename("abcd")
    return network


@pytest.mark.parametrize(
    ("change", "stored", "names"),
    [
        (lambda c: c[1:], {0, 2}, "bcd"),
        (lambda c: c[::-1], {0, 2}, "dcba"),
        (lambda c: c.pop(0) and c, {0, 2}, "bcd"),
        (lambda c: c.pop(slice(1, 2)) and c, {2}, "acd"),
        (lambda c: c.insert(1, *pairs(1)), {2, 4}, "a1bcd"),
        (lambda c: operator.setitem(c, 1, *pairs(1)) or c, {1, 3}, "abcd"),
        (lambda c: operator.setitem(c, slice(2), pairs(1)) or c, {2}, "0cd"),
        (lambda c: operator.delitem(c, slice(1, 3)) or c, {1}, "ad"),
        (lambda c: c + pairs(1), {1, 3}, "abcd4"),
        (lambda c: c + Chain(pairs(2), "reversible"), {1, 3}, "abcd45"),
        (lambda c: c + Chain(pairs(2), "budget", stored={1}), {1, 3, 5}, "abcd45"),
        (lambda c: operator.iadd(c, c), {1, 3, 5, 7}, "abcd4567"),
        (lambda c: 2 * c, {1, 3, 5, 7}, "01234567"),
        (lambda c: operator.imul(c, 2), {1, 3, 5, 7}, "01234567"),
    ],
)
def test_a11_a_plan_and_names_go_with_the_steps(change, stored, names):
    network = named()
    found = change(network)
    assert found.strategy.stored == found.options["stored"] == stored
    assert list(found._modules) == list(names)
    assert found is network or (network.strategy == named().strategy and len(network) == 4)


def test_a11_a_plan_that_is_set_is_that_of_a_slice_too():
    network = Chain(pairs(4), "budget", exact=True)
    store(network, [frozenset({1, 2})], [frozenset({3})])
    assert network[1:].strategy == Budget(True, 16, frozenset({0, 1}), frozenset({2}))
