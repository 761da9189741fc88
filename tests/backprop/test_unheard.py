"""Hooks on parameters hear of a gradient where there is one, as under stored."""

import pytest
import torch
from torch import nn

from memexp.backprop import Chain


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
