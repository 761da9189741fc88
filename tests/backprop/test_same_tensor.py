"""A block that is called with one tensor in several places, or gives one in several, finds it to be one when recomputed."""

import copy

import pytest
import torch
from torch import nn

from memexp.backprop import apply


class Attention(nn.Module):
    """Asks whether the keys are the queries, as torch's does, and computes otherwise where they are."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, query, key=None, pair=()):
        key = pair[0] if pair else key
        y = torch.tanh(self.layer(query))
        return y if query is key else y * torch.sigmoid(self.layer(key))


class GivesItTwice(Attention):
    def forward(self, pair):
        query, key = pair
        y = super().forward(query, key)
        return y, y


CALLS = {
    "places": (Attention, lambda block, x: block(x, x)),
    "keyword": (Attention, lambda block, x: block(x, key=x)),
    "list": (Attention, lambda block, x: block(x, pair=[x])),
    "two of three": (Attention, lambda block, x: block(x.sin(), x, pair=(x, x))),
    "torch's": (lambda: nn.MultiheadAttention(4, 2), lambda block, x: block(x, x, x)[0]),
    "its own": (GivesItTwice, lambda block, x: block(x if isinstance(x, tuple) else (x, x))),
}


class Network(nn.Module):
    def __init__(self, block, call):
        super().__init__()
        self.blocks, self.call = nn.ModuleList(block() for _ in range(3)), call

    def forward(self, x):
        for block in self.blocks:
            x = self.call(block, x)
        return x[0] + x[1] if isinstance(x, tuple) else x


def outputs_and_gradients(network, x):
    x = x.clone().requires_grad_()
    y = network(x)
    y.square().sum().backward()
    return [y, x.grad, *(p.grad for p in network.parameters())]


@pytest.mark.parametrize("backprop", ["light", "checkpointed", "budget"])
@pytest.mark.parametrize(("block", "call"), CALLS.values(), ids=CALLS)
def test_one_tensor_in_several_places_is_one_to_the_recomputation(block, call, backprop):
    torch.manual_seed(0)
    network, x = Network(block, call), torch.randn(5, 4)
    expected = outputs_and_gradients(copy.deepcopy(network), x)
    assert all(map(torch.equal, outputs_and_gradients(apply(network, backprop), x), expected))
