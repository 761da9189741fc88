"""Hooks on parameters hear of a gradient where there is one, as under stored."""

import pytest
import torch
from torch import nn

from memexp.backprop import AdditiveCoupling, Chain


class Part(nn.Module):
    """Of two streams, each from layers of its own."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.unused = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x, y):
        return self.first(x), self.second(y)


@pytest.mark.parametrize("add", [lambda x, y, c: x, lambda x, y, c: y, lambda x, y, c: x + c.unused(x)])
@pytest.mark.parametrize("passes", [1, 2])
def test_hooks_of_parameters_are_called_as_under_stored(add, passes):
    def heard(backprop):
        torch.manual_seed(0)
        network, found = Chain([Part()], backprop), []
        for name, p in network.named_parameters():
            p.register_hook(lambda grad, name=name: found.append((name, grad.norm().item())))
            p.register_post_accumulate_grad_hook(lambda p, name=name: found.append((name, p.grad.norm().item())))
        for _ in range(passes):
            add(*network(torch.ones(2, 4), torch.ones(2, 4)), network[0]).sum().backward()
        return sorted(found)

    assert heard("checkpointed") == heard("stored") != []


def test_a_hook_that_is_removed_is_gone():
    network, found = Chain([Part()], "checkpointed"), []
    handle = network[0].second.weight.register_hook(found.append)
    network(torch.ones(2, 4), torch.ones(2, 4))[0].sum().backward()
    network(torch.ones(2, 4), torch.ones(2, 4))[1].sum().backward()
    handle.remove()
    network(torch.ones(2, 4), torch.ones(2, 4))[1].sum().backward()
    assert len(found) == 1


def test_a_pass_that_accumulates_nothing_leaves_nothing_behind():
    """torch.autograd.grad calls no such hooks, and what it would have waited for is not waited for later."""
    network, found = Chain([Part()], "checkpointed"), []
    weight = network[0].second.weight
    weight.register_post_accumulate_grad_hook(found.append)
    weight.grad = torch.ones(4, 4)

    def loss():
        return network(torch.ones(2, 4), torch.ones(2, 4))[0].sum()

    torch.autograd.grad(loss(), network[0].first.weight)
    weight.grad.zero_()
    loss().backward()
    assert found == []


@pytest.mark.parametrize("backprop", ["checkpointed", "reversible"])
def test_a_parameter_that_is_a_result_retains_its_gradient_once(backprop):
    def retained(backprop):
        torch.manual_seed(0)
        network = Chain([AdditiveCoupling(nn.Linear(4, 4), nn.Linear(4, 4)) for _ in range(2)], backprop)
        doubled = {name: 2 * p for name, p in network.named_parameters()}
        for p in doubled.values():
            p.retain_grad()
        torch.func.functional_call(network, doubled, (torch.ones(2, 4), torch.ones(2, 4)))[1].sum().backward()
        return [p.grad for p in doubled.values()]

    torch.testing.assert_close(retained(backprop), retained("stored"))
