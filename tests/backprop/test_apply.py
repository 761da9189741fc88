"""A strategy for any network: the same gradients and names, less memory, wherever its blocks are held."""

import copy
import functools
import logging
from dataclasses import dataclass

import pytest
import torch
from body_rows import gradients, row
from chain_networks import same_bits
from foreign_networks import NETWORKS, Looped, images, made
from torch import nn

import memexp
import memexp.models
from memexp.backprop import AdditiveCoupling, Chain, StepError, apply, chains
from memexp.backprop.wrapped import is_taken
from memexp.memory.allocator import allocated


@pytest.mark.parametrize("backprop", ["light", "checkpointed", "budget"])
@pytest.mark.parametrize("name", NETWORKS)
def test_gradients_names_and_statistics_are_as_before(name, backprop):
    network = made(name)
    before = copy.deepcopy(network)
    assert apply(network, backprop) is network
    assert list(network.state_dict()) == list(before.state_dict())
    assert [n for n, _ in network.named_parameters()] == [n for n, _ in before.named_parameters()]
    assert same_bits(gradients(network, images()), gradients(before, images()))
    assert same_bits(list(network.buffers()), list(before.buffers()))
    with torch.no_grad():
        assert torch.equal(network.eval()(images()), before.eval()(images()))
    before.load_state_dict(network.state_dict())


@pytest.mark.parametrize("name", NETWORKS)
def test_light_keeps_less(name):
    network = made(name)
    stored = allocated(lambda: network(images(8)).sum())[1]
    assert allocated(lambda: apply(network, "light")(images(8)).sum())[1] < (0.95 if name == "resnet" else 0.9) * stored


def test_a_sequential_becomes_a_chain_where_it_stands_and_blocks_in_a_list_stay():
    network = apply(made("resnet"), "checkpointed")
    assert isinstance(network.layer1, Chain)
    assert [len(chain) for chain in chains(network)] == [2, 1, 1, 1]
    looped = apply(made("looped"), "checkpointed")
    assert isinstance(looped.blocks[0], Looped.Block)
    assert [chain.backprop for chain in chains(looped)] == ["checkpointed"] * 4


def test_a_copy_is_a_network_of_its_own():
    network = apply(made("looped"), "light")
    other = copy.deepcopy(network)
    expected = gradients(network, images())
    with torch.no_grad():
        for p in network.parameters():
            p.zero_()
    assert same_bits(gradients(other, images()), expected)


def test_applied_again_it_is_another_strategy():
    network = apply(made("looped"), "light")
    apply(network, "stored")
    assert {chain.backprop for chain in chains(network)} == {"stored"}
    with pytest.raises(ValueError, match="no step has an exact inverse"):
        apply(network, "reversible")


def test_a_network_that_is_a_sequential_is_given_back_as_a_chain():
    network = nn.Sequential(*[m for _ in range(3) for m in (nn.Linear(8, 8), nn.ReLU(inplace=True))])
    x = torch.randn(4, 8)
    expected = gradients(network, x)
    chain = apply(network, "light")
    assert isinstance(chain, Chain)
    assert same_bits(gradients(chain, x), expected)


class Bare(nn.Module):
    """Blocks that are attributes."""

    def __init__(self):
        super().__init__()
        self.first, self.second = Looped.Block(), Looped.Block()

    def forward(self, x):
        rotary = torch.ones(16), torch.zeros(16)
        return self.second(self.first(x, rotary=rotary)[0], rotary=rotary)[0]


@pytest.mark.parametrize("blocks", [["first", "second"], [Looped.Block]])
def test_without_such_a_body_it_says_what_to_wrap_and_takes_what_is_named(blocks):
    torch.manual_seed(0)
    network, x = Bare(), torch.randn(2, 6, 16)
    with pytest.raises(
        ValueError, match=r"Bare has no nn\.Sequential .* blocks=\[.*parts with layers inside: first, second"
    ):
        apply(network, "light")
    with pytest.raises(ValueError, match=r"blocks=\['third'\]: the network has no module of that name"):
        apply(network, "light", blocks=["third"])
    expected = gradients(network, x)
    apply(network, "checkpointed", blocks=blocks)
    assert len(chains(network)) == 2
    assert same_bits(gradients(network, x), expected)


class Recurrent(nn.Module):
    """Layers in lists, that are called one by one: no blocks that are found by themselves."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleDict({"a": nn.GRU(16, 16), "more": nn.ModuleList([nn.GRU(16, 16)])})

    def forward(self, x):
        for layer in (self.layers["a"], *self.layers["more"]):
            x = layer(x)[0]
        return x


@pytest.mark.parametrize("blocks", [["layers"], [nn.ModuleDict], ["layers.a", nn.ModuleList]])
def test_a_list_that_is_named_stands_for_what_is_in_it(blocks):
    """It was taken for a block, which nobody calls, and everything stayed stored; the advice was to name it."""
    network, x = Recurrent(), torch.randn(2, 6, 16)
    expected = gradients(network, x)
    with pytest.raises(ValueError, match="parts with layers inside: layers"):
        apply(network, "light")
    apply(network, "checkpointed", blocks=blocks)
    assert all(map(is_taken, (network.layers["a"], network.layers["more"][0])))
    assert same_bits(gradients(network, x), expected)


def compiled(block):
    """As torch.compile: a module whose class has no forward."""
    module = nn.Module()
    module.block, module.forward = block, block.forward
    return module


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("replaced", [torch.jit.script, compiled])
def test_blocks_that_are_compiled_by_themselves_are_refused_by_name(replaced):
    network = nn.ModuleDict({"blocks": nn.ModuleList(replaced(row()) for _ in range(2))})
    with pytest.raises(StepError, match="Module has its forward replaced already: give the network as it was built"):
        apply(network, "light")


class Levels(nn.Module):
    """As a U-Net: lists of different parts in a list."""

    def __init__(self):
        super().__init__()
        parts = ((row(), nn.Sequential(row(), nn.Tanh()), nn.Linear(16, 16)) for _ in range(2))
        self.downs = nn.ModuleList(map(nn.ModuleList, parts))

    def forward(self, x):
        for block, other, down in self.downs:
            x = down(other(block(x)) + x)
        return x


def test_what_is_in_lists_in_a_list_is_taken():
    """The inner lists were, which nobody calls, and everything stayed stored."""
    network, x = Levels(), torch.randn(2, 16)
    expected = gradients(network, x)
    assert len(chains(apply(network, "checkpointed"))) == 4
    stored = allocated(lambda: Levels()(x).sum())[1]
    assert allocated(lambda: network(x).sum())[1] < stored
    assert same_bits(gradients(network, x), expected)


class Mixed(nn.Module):
    """One Chain of its own, and blocks beside it."""

    def __init__(self):
        super().__init__()
        self.stem = Chain([row(), nn.Sequential(row(), row())])
        self.blocks = nn.ModuleList(row() for _ in range(3))

    def forward(self, x):
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        return x


def test_blocks_beside_a_chain_of_its_own_are_told_and_taken_by_name(caplog):
    network, x = Mixed(), torch.randn(2, 16)
    expected = gradients(network, x)
    with caplog.at_level(logging.WARNING, "memexp"):
        apply(network, "checkpointed")
    assert "the blocks blocks.0, blocks.1, blocks.2 stay stored: to take them, too, name them" in caplog.text
    caplog.clear()
    names = ["blocks.0", "blocks.1", "blocks.2"]
    for blocks in (names, names, None):  # again, too
        apply(network, "light", blocks=blocks)
        assert [chain.backprop for chain in chains(network)] == ["light"] * 4
    assert caplog.text == ""
    assert same_bits(gradients(network, x), expected)


@pytest.mark.parametrize(
    ("blocks", "said"),
    [
        (["nonsense"], r"blocks=\['nonsense'\]: the network has no module of that name"),
        ([nn.Conv2d], r"the network has no module of the class Conv2d"),
        (["stem.1.0"], r"'stem.1.0' is inside of 'stem'"),
        (["blocks.0", "stem.0.0"], r"'stem.0.0' is inside of 'stem'"),
        ([Mixed], r"'' is inside of 'stem', or has it inside"),
    ],
)
def test_blocks_that_cannot_be_taken_beside_chains_are_refused(blocks, said):
    network = Mixed()
    with pytest.raises(ValueError, match=said):
        apply(network, "light", blocks=blocks)
    assert [chain.backprop for chain in chains(network)] == ["stored"]


def coupling():
    return AdditiveCoupling(nn.Linear(8, 8), nn.Linear(8, 8))


@pytest.mark.parametrize("blocks", ["layer1", nn.Linear, [0]])
def test_blocks_are_a_list_of_names_and_classes(blocks):
    with pytest.raises(ValueError, match=r"^blocks=.*: use a list of names of modules and of classes"):
        apply(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)), "light", blocks=blocks)


@pytest.mark.parametrize(
    "parts",
    [
        lambda: [nn.Sequential(coupling(), row(), nn.ReLU(inplace=True)), row()],
        lambda: [Chain([coupling()], "stored", exact=True), Chain([row()])],
        lambda: [Chain([coupling()], "budget", light=frozenset({0})), apply(made("looped"), "light")],
    ],
)
def test_a_refusal_leaves_the_network_as_it_was(parts):
    network = nn.ModuleDict(dict(zip("ab", parts(), strict=True)))

    def state():
        inplace = [getattr(m, "inplace", None) for m in network.modules()]
        return list(network.modules()), inplace, [(c, c.backprop, c.options, c.strategy) for c in chains(network)]

    before = state()
    with pytest.raises(ValueError, match="no step has an exact inverse"):
        apply(network, "reversible")
    assert state() == before


@dataclass
class State:
    h: torch.Tensor


class OfAnObject(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = row()

    def forward(self, s):
        return State(s.h + self.layer(s.h))


class OfANumber(nn.Module):
    def __init__(self):
        super().__init__()
        self.at, self.layer = nn.Embedding(8, 16), nn.Linear(16, 16)

    def forward(self, n=8):
        return self.layer(self.at.weight[:n])


class Called(nn.Module):
    def __init__(self, block, call):
        super().__init__()
        self.blocks, self.call = nn.ModuleList(block() for _ in range(2)), call

    def forward(self, x):
        for block in self.blocks:
            x = self.call(block, x)
        return x


@pytest.mark.parametrize("backprop", ["stored", "light", "checkpointed", "budget"])
@pytest.mark.parametrize(
    ("block", "call"),
    [
        (OfAnObject, lambda block, x: block(State(x)).h),
        (OfAnObject, lambda block, x: block(s=State(x)).h),
        (OfANumber, lambda block, x: x * block(8)),
        (OfANumber, lambda block, x: x * block(n=8)),
        (OfANumber, lambda block, x: x * block()),
    ],
)
def test_a_block_that_is_called_without_tensors_is_called_as_it_was_written(block, call, backprop):
    torch.manual_seed(0)
    network, x = Called(block, call), torch.randn(8, 16)
    expected = gradients(network, x)
    assert same_bits(gradients(apply(network, backprop), x), expected)


@pytest.mark.parametrize("backprop", ["light", "budget"])
def test_a_run_trains_torchvisions_networks_under_it(tmp_path, backprop):
    overrides = ["model=torchvision", "model.arch=squeezenet1_1", "dataset=digits", "dataset.image_size=64"]
    overrides += [
        "dataset.limit=64",
        "dataset.test_limit=10",
        "batch_size=32",
        "device=cpu",
        "max_steps=2",
        "monitor_every=0",
    ]
    more = ["backprop.limit=0.8"] if backprop == "budget" else []
    found = [
        memexp.run(memexp.compose([*overrides, f"backprop={name}", *options]), tmp_path / name)
        for name, options in (("stored", []), (backprop, more))
    ]
    weights = [
        torch.load(tmp_path / name / "checkpoints" / "last.pt", weights_only=True)["model"]
        for name in ("stored", backprop)
    ]
    assert list(weights[0]) == list(weights[1])
    assert all(torch.equal(value, weights[1][key]) for key, value in weights[0].items())
    memory = found[1]["memory"]
    assert memory["peak"] < 0.9 * found[0]["memory"]["peak"]
    assert memory["estimate"] == memory["peak"]


def test_a_network_of_a_users_own_is_taken_too():
    chain = functools.partial(Chain, backprop="light")
    target = "torchvision.models.squeezenet1_1"
    network = memexp.models.create(classes=5, shape=(3, 64, 64), chain=chain, _target_=target, num_classes=5)
    assert isinstance(network.features, Chain)
