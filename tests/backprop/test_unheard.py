"""Hooks hear of a gradient where there is one, as under stored."""

import pytest
import torch
from torch import nn

from memexp.backprop import AdditiveCoupling, Chain, apply, unheard


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


class Deaf(nn.Module):
    """Blocks are handed positions, which none of them uses, as where they are dropped at random."""

    def __init__(self, made):
        super().__init__()
        self.positions, self.made = nn.Parameter(torch.ones(4)), made
        self.blocks = nn.ModuleList([Sole(), Sole()])

    def forward(self, x, found):
        positions = self.positions
        for name in self.made:
            positions = positions * 2
            positions.register_hook(lambda grad, name=name: found.append((name, grad.norm().item())))
        for block in self.blocks:
            x = block(x, positions)
        return x


class Sole(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer, self.unused = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x, positions):
        return self.layer(x)


@pytest.mark.parametrize("made", ["", "a"])
def test_so_are_those_of_what_a_block_is_handed_and_hooks_on_many_tensors(made):
    def heard(backprop):
        torch.manual_seed(0)
        network, found = apply(Deaf(made), backprop), []
        network.positions.register_hook(lambda grad: found.append(("positions", grad.norm().item())))
        network.positions.register_post_accumulate_grad_hook(lambda p: found.append(("sum", p.grad.norm().item())))
        every = list(network.parameters())
        many = torch.autograd.graph.register_multi_grad_hook
        many(every, lambda grads: found.append(("all", [grad is not None for grad in grads])))
        many(every, lambda grad: found.append(("any", grad is not None)), mode="any")
        network(torch.ones(2, 4), found).sum().backward()
        return sorted(found), network.positions.grad

    assert heard("checkpointed") == heard("light")


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


def test_what_is_below_many_nodes_is_looked_at_once_a_pass(monkeypatch):
    network, found = apply(Deaf("a"), "checkpointed"), []
    monkeypatch.setattr(unheard, "_reach", lambda leaf: found.append(id(leaf)))
    for _ in range(2):
        network(torch.ones(2, 4), []).sum().backward()
        assert len(found) == len(set(found)) > 0
        assert id(network.positions) in found
        found.clear()
