"""What is compiled is known, can be left aside, and is put back; a strategy that is chosen meanwhile is followed."""

import pytest
import torch
from torch import nn

from memexp.backprop import AdditiveCoupling, Chain, apply, chains, compiled


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(8, 8)

    def forward(self, x):
        return torch.tanh(self.layer(x))


class Blocks(nn.Module):
    """A network that loops over a list of blocks, which apply takes where they stand."""

    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList([Block() for _ in range(3)])

    def forward(self, x):
        for block in self.blocks:
            x = x + block(x)
        return x


def registered():
    return Chain([Block() for _ in range(3)], "checkpointed")


def before_blocks():
    return apply(Blocks(), "checkpointed")


def whole():
    return nn.Sequential(Block(), Block())


@pytest.mark.usefixtures("partitioned")
@pytest.mark.parametrize("make", [registered, before_blocks, whole])
def test_uncompiled_is_all_that_was_compiled_and_all_is_put_back(make):
    network = make()
    modules = [module for part in (network, *chains(network)) for module in part.modules()]

    def calls():
        return [module._compiled_call_impl for module in modules]

    with compiled.compiled(network):
        inside, remade = calls(), [chain.remade for chain in chains(network)]
        assert any(inside)
        with compiled.uncompiled(network) as told:
            assert told
            assert not any(calls())
        with compiled.compiled(network):
            assert any(calls())
        assert calls() == inside
        assert [chain.remade for chain in chains(network)] == remade
    assert not any(calls())


@pytest.mark.usefixtures("partitioned")
def test_another_strategy_chosen_while_steps_are_compiled_is_followed():
    chain = Chain([AdditiveCoupling(nn.Sequential(nn.Linear(8, 8)), nn.Sequential(nn.Linear(8, 8))) for _ in range(3)])
    chain.choose("light")
    with compiled.compiled(chain):
        chain.choose("reversible")
        assert chain.remade
        x = [torch.randn(16, 8) for _ in range(2)]
        assert "Recompute" in type(chain(*x)[0].grad_fn.next_functions[0][0]).__name__  # the last step is stored
