"""What the one forward of a trace does not run: named once, and what it takes stays where training is seen to run it."""

import copy
import logging
from collections.abc import Callable

import equality
import pytest
import torch
from torch import Tensor, nn

from memexp import channels
from memexp.integral import convert
from memexp.pruning import prune


class Heads(nn.Module):
    """Two layers, the first of which feeds a head beside them; `runs` says when."""

    def __init__(self, runs: Callable[["Heads", Tensor], bool], head: nn.Module | None = None) -> None:
        super().__init__()
        self.runs = runs
        self.a, self.norm, self.b, self.o = (
            nn.Conv2d(3, 8, 3),
            nn.BatchNorm2d(8),
            nn.Conv2d(8, 6, 1),
            nn.Conv2d(6, 4, 1),
        )
        self.aux = head or nn.Sequential(nn.Conv2d(8, 5, 1), nn.Dropout(), nn.Conv2d(5, 2, 1))

    def forward(self, x: Tensor, target: Tensor | None = None) -> Tensor | tuple[Tensor, Tensor]:
        y = self.norm(self.a(x)).relu()
        z = self.o(self.b(y).relu())
        return (z, self.aux(y)) if self.runs(self, x) else z


def in_training(network: Heads, x: Tensor) -> bool:
    return network.training


def on_large_ones(network: Heads, x: Tensor) -> bool:
    return x.shape[-1] > 8


def never(network: Heads, x: Tensor) -> bool:
    return False


def in_training_with_more(network: Heads, x: Tensor) -> bool:
    if network.training:
        raise TypeError("targets should not be None when in training mode")
    return False


# when the head runs: sizes of the groups, what is named as not run
CASES: dict[Callable[[Heads, Tensor], bool], tuple[list[int], tuple[str, ...]]] = {
    in_training: ([6], ()),
    on_large_ones: ([8, 6], ("aux",)),
    never: ([8, 6], ("aux",)),
    in_training_with_more: ([8, 6], ("aux",)),
}
X = torch.randn(2, 3, 6, 6)


@pytest.mark.parametrize("runs", CASES, ids=lambda runs: runs.__name__)
def test_what_does_not_run_is_known(runs: Callable[[Heads, Tensor], bool]) -> None:
    torch.manual_seed(0)
    network = Heads(runs)
    before, random = copy.deepcopy(network.state_dict()), torch.get_rng_state()
    graph = channels.trace(network, X)
    assert ([group.size for group in graph.groups], graph.unread) == CASES[runs]
    assert all(
        torch.equal(before[name], value) for name, value in network.state_dict().items()
    )  # no statistics of a trial
    assert torch.equal(random, torch.get_rng_state())
    assert network.training
    assert "does not run it" in graph.frozen["aux.0.weight", 0]
    kept = equality.choose(graph, 0.5)
    assert equality.difference(equality.randomise(network), graph, kept, X)[1] < 1e-5


@pytest.mark.parametrize("runs", CASES, ids=lambda runs: runs.__name__)
@pytest.mark.parametrize("use", ["prune", "convert"])
def test_it_is_named_once(use: str, runs: Callable[[Heads, Tensor], bool], caplog: pytest.LogCaptureFixture) -> None:
    network, unread = Heads(runs).eval(), CASES[runs][1]
    with caplog.at_level(logging.WARNING, "memexp"):
        made = prune(network, X, ratio=0.5)[0] if use == "prune" else convert(network, X)
    lines = [record.getMessage() for record in caplog.records if "not run by the forward" in record.getMessage()]
    assert [line.partition(":")[0] for line in lines] == list(unread)
    if runs is in_training:
        made.train()(X)  # what the head takes is as wide as before


def test_a_network_whose_head_for_training_takes_all_that_could_go_is_refused_with_the_reason() -> None:
    network = Heads(in_training)
    network.b, network.o = nn.Conv2d(8, 4, 1), nn.Identity()
    words = r"\w+\.weight: the forward in training mode, which runs aux, does not run with fewer of them"
    with pytest.raises(ValueError, match=rf"no layer of this network has channels that can be removed: {words}"):
        prune(network, X, ratio=0.5)
    with pytest.raises(ValueError, match=rf"no group of channels can be made continuous: {words}"):
        convert(network, X)


def test_the_outermost_module_and_single_parameters_are_named() -> None:
    network = Heads(never, nn.ModuleDict({"one": nn.Linear(2, 2), "two": nn.Sequential(nn.Linear(2, 2))}))
    network.b.register_parameter("spare", nn.Parameter(torch.zeros(3)))
    network.b.add_module("inner", nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)))
    assert channels.trace(network, X).unread == ("b.spare", "b.inner", "aux")
    assert channels.trace(nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)), torch.randn(2, 3)).unread == ()


class Disturbed(nn.Module):
    """What happens to the first layer's channels in training alone has a length of its own: `how` is at fault."""

    def __init__(self, how: Callable[["Disturbed", Tensor], Tensor]) -> None:
        super().__init__()
        self.how, self.width = how, 8
        self.a, self.b, self.o = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 6, 1), nn.Conv2d(6, 4, 1)
        self.register_buffer("shares", torch.ones(8))

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x).relu()
        return self.o(self.b(self.how(self, y) if self.training else y).relu())


DISTURBANCES: dict[str, Callable[[Disturbed, Tensor], Tensor]] = {
    "noise of a width": lambda network, x: x * (1 + torch.randn(len(x), network.width, 1, 1)),
    "a buffer": lambda network, x: x * nn.functional.dropout(network.get_buffer("shares"))[:, None, None],
    "a number": lambda network, x: x.view(len(x), 8, -1).view(len(x), 8, *x.shape[2:]),
}


@pytest.mark.parametrize("how", DISTURBANCES.values(), ids=list(DISTURBANCES))
def test_what_training_alone_does_to_channels_keeps_them(how: Callable[[Disturbed, Tensor], Tensor]) -> None:
    network = Disturbed(how)
    pruned, _ = prune(network, X, ratio=0.5)
    assert [pruned.get_parameter(f"{name}.weight").shape[0] for name in "abo"] == [8, 3, 4]
    assert pruned.train()(X).shape == network(X).shape
    assert "the forward in training mode does not run" in channels.trace(network, X).frozen["a.weight", 0]
