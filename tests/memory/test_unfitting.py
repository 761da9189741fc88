"""What memexp.memory.fit cannot plan is one sentence, and the network is as before."""

import random
import sys
from pathlib import Path
from threading import Lock

import pytest
import torch
from fit_blocks import Block, Looped, Note, layers, square
from torch import nn

from memexp.config import ConfigError
from memexp.memory import fit

sys.path.insert(0, str(Path(__file__).parents[1] / "backprop"))


def random_skip(share):
    draws = random.Random(0)
    return lambda index: draws.random() < share


def with_sparse_buffer():
    network = Looped(Block() for _ in range(3))
    network.blocks[1].register_buffer("edges", torch.eye(16).to_sparse_csr())
    network.blocks[1].way = lambda block, x: torch.sparse.mm(block.edges, block.layer(x).T).T
    return network


def with_attribute(value):
    network = Looped(Block() for _ in range(3))
    network.blocks[1].kept = value(network)
    return network


@pytest.mark.parametrize(
    ("network", "loss_fn", "said"),
    [
        (lambda: with_attribute(lambda _: Lock()), square, r"attribute kept of blocks.1 \(a lock\) cannot be copied"),
        (
            lambda: with_attribute(lambda n: Note(n(torch.ones(1, 16)))),
            square,
            r"attribute kept of blocks.1 \(a Note\)",
        ),
        (with_sparse_buffer, square, "trains, but cannot be followed without data"),
        (lambda: Looped([Block()] * 3, random_skip(0.4)), square, r"block blocks\.\d \(Block\) is called in one pass"),
        (
            lambda: Looped([Block() for _ in range(3)], random_skip(0.4)),
            square,
            r"\(Block\) is called in one pass and not",
        ),
        (
            lambda: Looped([Block() for _ in range(3)], random_skip(0.05)),
            square,
            r"\(Block\) is called in one pass and not",
        ),
        (lambda: Looped([layers(), layers()]), lambda y: (y.sum(), y), "loss_fn gives a tuple"),
        (lambda: Looped([layers(), layers()]), lambda y: y.sum().item(), "loss_fn gives a float"),
        (lambda: Looped([layers(), layers()]), lambda y: y, r"loss_fn gives a tensor of shape \(8, 16\)"),
        (lambda: Looped([layers(), layers()]), lambda y: y.sum().detach(), "needs no gradient"),
        (lambda: Looped([layers(), layers()]).requires_grad_(False), square, "Looped has no parameter that is trained"),
        (lambda: nn.Sequential(nn.Tanh(), nn.Tanh()), square, "Sequential has no parameter that is trained"),
    ],
)
def test_what_cannot_be_planned_is_one_sentence(network, loss_fn, said):
    with pytest.raises(ValueError, match=said) as found:
        fit(network(), loss_fn, torch.randn(8, 16, requires_grad=True), 1.0)
    assert "\n" not in str(found.value)


def test_blocks_that_the_forward_does_not_call_are_named():
    class Idle(nn.Module):
        def __init__(self):
            super().__init__()
            self.used = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 8))
            self.idle = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 8))

        def forward(self, x):
            return self.used(x)

    with pytest.raises(ValueError, match=r"unit 2 \(Linear\) of the network's blocks is not called"):
        fit(Idle(), lambda y: y.sum(), torch.randn(4, 8), 0.6)


def test_a_network_that_trains_but_whose_kernels_have_no_shapes_without_data_is_one_sentence():
    class Strict(nn.Linear):
        def forward(self, x):
            if type(self.weight.data) is not torch.Tensor:
                raise RuntimeError("expected mat_a to be BFloat16")
            return super().forward(x)

    network = nn.Sequential(*(nn.Sequential(Strict(8, 8), nn.Tanh()) for _ in range(3)))
    with pytest.raises(
        ConfigError, match=r"the network trains, but cannot be followed without data \(expected mat_a .*light"
    ):
        fit(network, lambda y: y.sum(), torch.randn(4, 8), 0.6)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"limit": limit}, f"limit={limit!r}: use bytes, such as")
        for limit in (True, None, "0.5", "half", -1, float("nan"))
    ]
    + [
        (
            {"limit": 0.5, "optimizer": torch.optim.SGD([nn.Parameter(torch.ones(1))])},
            "optimizer is a SGD: give what makes",
        )
    ],
)
def test_what_cannot_be_meant_is_said_before_the_network_is_evaluated(wrong, said):
    network = layers()
    network.register_forward_pre_hook(lambda *_: pytest.fail("it was evaluated"))
    with pytest.raises(ValueError, match=said):
        fit(network, torch.sum, torch.ones(2, 16), **wrong)
