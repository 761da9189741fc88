"""What is taken as drawing no random numbers draws none: else its recomputation would differ, and the gradient with it."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from memexp.backprop import AdditiveCoupling, Chain


def in_place_of_forward():
    layer = nn.Linear(8, 8)
    own = layer.forward
    layer.forward = lambda x: functional.dropout(own(x), 0.5)
    return layer


def by_a_hook():
    layer = nn.Linear(8, 8)
    layer.register_forward_hook(lambda _, inputs, y: functional.dropout(y, 0.5))
    return layer


def by_a_hook_before():
    layer = nn.Linear(8, 8)
    layer.register_forward_pre_hook(lambda _, inputs: functional.dropout(inputs[0], 0.5))
    return layer


def by_a_class_of_its_own():
    class Drawing(nn.Linear):
        def forward(self, x):
            return functional.dropout(super().forward(x), 0.5)

    return Drawing(8, 8)


@pytest.mark.parametrize("make", [in_place_of_forward, by_a_hook, by_a_hook_before, by_a_class_of_its_own])
@pytest.mark.parametrize("backprop", ["checkpointed", "reversible"])
def test_layers_that_draw_in_ways_of_their_users_are_replayed(backprop, make):
    gradients = []
    for strategy in ("stored", backprop):
        torch.manual_seed(0)
        chain = Chain([AdditiveCoupling(make(), nn.Sequential(make(), nn.Tanh())) for _ in range(2)], strategy).double()
        outputs = chain(*(torch.randn(4, 8, dtype=torch.float64) for _ in range(2)))
        sum(y.square().sum() for y in outputs).backward()
        gradients.append([p.grad for p in chain.parameters()])
    for found, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(found, expected)
