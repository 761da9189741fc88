"""What a module's forward sets in attributes of its own is, for a recomputation, what the first pass has found."""

import copy
from collections import deque

import pytest
import torch
from torch import nn

from memexp.backprop import AdditiveCoupling, Chain, StepError, check
from memexp.backprop.monitor import compare
from memexp.memory import fit


class Layer(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 4)
        self.state = torch.ones(4)


class Counting(Layer):
    calls = 0

    def forward(self, x):
        self.calls += 1
        return torch.tanh(self.layer(x) * self.calls)


class Once(Layer):
    """Makes what it needs in its first call, and deletes what it needed for that."""

    def forward(self, x):
        if hasattr(self, "state"):
            self.table = 3 * self.state
            del self.state
            return torch.tanh(self.layer(x))
        return torch.tanh(self.layer(x) * self.table)


class Recurrent(Layer):
    """Its state is a result, that has a graph."""

    def forward(self, x):
        self.state = torch.tanh(self.layer(x) + self.state.detach())
        return self.state


class Listing(Layer):
    """Keeps means of what it has given in containers in containers."""

    def __init__(self):
        super().__init__()
        self.kept, self.window, self.seen = {"means": [], "calls": 0}, (deque(maxlen=2),), set()

    def forward(self, x):
        self.kept["calls"] += 1
        self.seen.add(self.kept["calls"])
        y = torch.tanh(self.layer(x) * len(self.seen) + sum(self.window[0]) + sum(self.kept["means"]))
        self.kept["means"].append(y.mean().detach())
        self.window[0].append(y.square().mean().detach())
        self.state = torch.stack([*self.kept["means"], *self.window[0]]).sum()
        return y


class Sharing(Layer):
    """Reads how much others have left in a list."""

    def __init__(self, left=()):
        super().__init__()
        self.left = left

    def forward(self, x):
        y = torch.tanh(self.layer(x) * (1 + len(self.left)))
        self.left.append(y)  # with its graph
        self.state = torch.tensor(len(self.left))
        return y


class InPlace(Layer):
    def forward(self, x):
        self.state.mul_(2.0)
        return torch.tanh(self.layer(x) * self.state)


class InPlaceWithin(Layer):
    def __init__(self):
        super().__init__()
        self.state = {"scale": (torch.ones(4),)}

    def forward(self, x):
        return torch.tanh(self.layer(x) * self.state["scale"][0].mul_(2.0))


def trained(steps, backprop):
    """Gradients of two passes, and the attributes after them."""
    network = Chain(copy.deepcopy(steps), backprop).double()
    for seed in range(2):
        streams = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).unbind()
        outputs = network(*streams[: 2 if isinstance(steps[0], AdditiveCoupling) else 1])
        (outputs if isinstance(outputs, torch.Tensor) else outputs[0] + outputs[1]).sum().backward()
    own = [vars(m).get(key, 0) for m in network.modules() for key in ("calls", "state", "table")]
    return [p.grad for p in network.parameters()], [torch.as_tensor(value) for value in own]


@pytest.mark.parametrize("backprop", ["checkpointed", "reversible"])
@pytest.mark.parametrize("kind", [Counting, Once, Recurrent, Listing])
def test_gradients_and_attributes_are_those_of_stored(kind, backprop):
    steps = [kind() for _ in range(4)]
    if backprop == "reversible":
        steps = [AdditiveCoupling(*steps[:2]), AdditiveCoupling(*steps[2:])]
    for found, expected in zip(trained(steps, backprop), trained(steps, "stored"), strict=True):
        assert all(torch.allclose(a, b, rtol=1e-5, atol=1e-6) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("kind", [Counting, Recurrent, Listing])
def test_a_module_in_several_branches_is_seen_as_each_has_found_it(kind):
    """They are undone in another order, here by one node."""
    module = kind()
    steps = [AdditiveCoupling(module, module), AdditiveCoupling(kind(), module)]
    for found, expected in zip(trained(steps, "reversible"), trained(steps, "stored"), strict=True):
        assert all(torch.allclose(a, b, rtol=1e-5, atol=1e-6) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("backprop", ["checkpointed", "reversible"])
def test_modules_that_share_a_list_see_it_as_each_has_found_it(backprop):
    left = []
    steps = [Sharing(left) for _ in range(4)]
    if backprop == "reversible":
        steps = [AdditiveCoupling(*steps[:2]), AdditiveCoupling(*steps[2:])]
    for found, expected in zip(trained(steps, backprop), trained(steps, "stored"), strict=True):
        assert all(torch.allclose(a, b, rtol=1e-5, atol=1e-6) for a, b in zip(found, expected, strict=True))


def test_a_list_that_is_emptied_before_backward_stays_empty():
    left = []
    network = Chain([Sharing(left), Sharing(left)], "checkpointed")
    y = network(torch.ones(2, 4))
    left.clear()
    y.sum().backward()
    assert left == []


@pytest.mark.parametrize("kind", [InPlace, InPlaceWithin])
def test_a_tensor_that_is_written_in_place_is_refused(kind):
    with pytest.raises(StepError, match=rf"{kind.__name__} writes to the tensor in its attribute state in place"):
        Chain([kind()], "checkpointed")(torch.ones(2, 4))


def test_checking_leaves_them_as_they_are():
    network = Chain([Counting()], "checkpointed", check=True)
    network(torch.ones(2, 4))
    assert network[0].calls == 1
    assert check(network, torch.ones(2, 4)).steps[0].repeatable


@pytest.mark.parametrize("kind", [Counting, Listing])
def test_measuring_sees_the_same_twice_and_leaves_them_as_they_are(kind):
    torch.manual_seed(0)
    network, x = Chain([kind() for _ in range(3)], "checkpointed"), torch.ones(2, 4)
    before = copy.deepcopy([vars(step) for step in network])
    assert all(step.gradient_error == 0 for step in check(network, x).steps)
    assert compare(network, lambda: network(x).sum()).gradient_error == 0
    fit(network, torch.sum, x, limit="1MB")
    after = [vars(step) for step in network]
    assert all(
        a.get(key) == b.get(key) for a, b in zip(after, before, strict=True) for key in ("calls", "kept", "window")
    )
