"""Which part of a network becomes a Chain, and what of it stays: parameters, methods, hooks, names."""

import copy

import pytest
import torch
from body_rows import gradients, row
from chain_networks import same_bits
from torch import nn
from torchvision.models import vision_transformer
from torchvision.ops import MLP, Conv2dNormActivation

from memexp.backprop import Chain, apply, chains


class Plain(nn.Sequential):
    stride = 2

    def __init__(self, *layers):
        super().__init__(*layers)
        self.out_channels, self.sizes = 16, [1, 2]


class WithParameter(Plain):
    def __init__(self, *layers):
        super().__init__(*layers)
        self.gamma = nn.Parameter(torch.ones(16))


class WithBuffer(Plain):
    def __init__(self, *layers):
        super().__init__(*layers)
        self.register_buffer("mean", torch.zeros(16))


class WithMethod(Plain):
    def scaled(self, x):
        return 2 * self(x)


class WithProperty(Plain):
    @property
    def width(self):
        return 16


class WithOverride(Plain):
    def train(self, mode=True):
        super().train(mode)
        self[0].eval()
        return self


class WithMixin(WithMethod, Plain):
    pass


class WithNameOfAChain(Plain):
    def __init__(self, *layers):
        super().__init__(*layers)
        self.strategy = "mine"


class Holding(nn.Module):
    """Calls its part as the part's class has it."""

    def __init__(self, part):
        super().__init__()
        self.part = part

    def forward(self, x):
        y = self.part.scaled(x) if hasattr(self.part, "scaled") else self.part(x)
        return y * getattr(self.part, "gamma", 1) + getattr(self.part, "mean", 0)


OWNERS = [WithParameter, WithBuffer, WithMethod, WithProperty, WithOverride, WithMixin, WithNameOfAChain]


@pytest.mark.parametrize("layers", [lambda: [*row()], lambda: [row() for _ in range(3)], lambda: [row(), nn.Tanh()]])
@pytest.mark.parametrize("root", [False, True])
@pytest.mark.parametrize("owner", OWNERS)
def test_a_sequential_with_more_than_its_layers_stays_what_it_is(owner, root, layers):
    torch.manual_seed(0)
    network, x = owner(*layers()) if root else Holding(owner(*layers())), torch.randn(8, 16)
    before = copy.deepcopy(network)
    assert apply(network, "checkpointed") is network
    assert type(network if root else network.part) is owner
    assert list(network.state_dict()) == list(before.state_dict())
    assert chains(network)
    assert same_bits(gradients(network, x), gradients(before, x))


@pytest.mark.parametrize(
    ("part", "names"),
    [
        (lambda: Plain(*row()), ["out_channels", "sizes", "stride"]),
        (lambda: Conv2dNormActivation(3, 8, norm_layer=lambda c: nn.Conv2d(c, c, 1)), ["out_channels"]),
        (lambda: MLP(16, [16, 16]), []),
        (lambda: vision_transformer.MLPBlock(16, 32, 0.0), ["_version"]),
    ],
)
def test_a_sequential_with_plain_attributes_becomes_a_chain_that_has_them(part, names):
    network = Holding(part())
    values = [getattr(network.part, name) for name in names]
    own = vars(type(network.part)).keys() & {"_load_from_state_dict"}
    apply(network, "light")
    assert isinstance(network.part, Chain) is not bool(own)  # MLPBlock reads weights under the names of before
    assert [getattr(network.part, name) for name in names] == values


@pytest.mark.parametrize("kind", ["forward_pre", "forward", "full_backward_pre", "full_backward"])
def test_hooks_of_a_sequential_are_called_as_before(kind):
    network, calls = Holding(row()), []
    getattr(network.part, f"register_{kind}_hook")(lambda *given: calls.append(len(given)))
    network(torch.randn(2, 16, requires_grad=True)).sum().backward()
    apply(network, "light")
    network(torch.randn(2, 16, requires_grad=True)).sum().backward()
    assert len(calls) == 2
    assert calls[0] == calls[1]


@pytest.mark.parametrize("part", [row, lambda: nn.ModuleList([row(), row()]), lambda: WithMethod(*row())])
def test_a_part_with_two_names_is_taken_under_both(part):
    network = nn.Module()
    network.first = part()
    network.second = network.first
    names = list(network.state_dict())
    apply(network, "light")
    assert network.second is network.first
    assert chains(network)
    assert list(network.state_dict()) == names
