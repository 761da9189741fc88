"""A pass that is recorded and replayed: with a stand-in for the CUDA graph, whose replay runs the pass on its own tensors."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional

import memexp
from memexp import stages
from memexp.backprop import AdditiveCoupling, Chain, join, split
from memexp.config import ConfigError
from memexp.models.vanishing import ArtefactReLU, VanishingReLU, set_lambda
from memexp.training.graphed import WARM_UP, Graphed
from memexp.training.precision import Precision
from memexp.training.step import train_step


class Graph:
    """Replays by running the function again, and writing into the tensors that the first run gave."""

    def __init__(self, function, parameters):
        self.function, self.parameters, self.replays = function, parameters, 0
        self.before = [None if p.grad is None else p.grad for p in parameters]
        self.loss = function()
        self.grads = [p.grad for p in parameters]
        for before, grad in zip(self.before, self.grads, strict=True):
            if before is not None:  # a recording carries nothing out
                assert before is grad
        self.ran = [None if grad is None else grad.clone() for grad in self.grads]

    def pool(self):
        return "pool"

    def replay(self):
        self.replays += 1
        kept = [p.grad for p in self.parameters]
        for p in self.parameters:
            p.grad = None
        loss = self.function()
        for before, grad, p in zip(self.before, self.grads, self.parameters, strict=True):
            if grad is not None:
                grad.copy_(p.grad) if before is None else grad.add_(p.grad)
        for p, grad in zip(self.parameters, kept, strict=True):
            p.grad = grad
        self.loss.copy_(loss)


class Recorder:
    def __init__(self, network):
        self.parameters, self.graphs, self.pools = list(network.parameters()), [], []
        self.recording = False

    def __call__(self, function, pool):
        self.recording = True
        before = [None if p.grad is None else p.grad.clone() for p in self.parameters]
        graph = Graph(function, self.parameters)
        for p, value in zip(self.parameters, before, strict=True):
            if value is not None:  # a recording carries nothing out
                p.grad.copy_(value)
        self.graphs.append(graph)
        self.pools.append(pool)
        return graph, graph.loss


def plain() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))


def batch(number: int, size: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(number)
    return torch.randn(size, 6, generator=generator), torch.randint(3, (size,), generator=generator)


def trained(network, steps, graphed=None):
    """Losses of the steps; a step is a list of batches."""
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
    precision = Precision("fp32", torch.device("cpu"))
    losses = []
    for batches in steps:
        losses.append(train_step(network, functional.cross_entropy, optimizer, batches, precision, None, graphed))
    return torch.stack(losses)


@pytest.mark.parametrize("accumulate", [1, 2, 3])
def test_replayed_steps_train_as_launched_ones(accumulate):
    steps = [[batch(9 * step + number) for number in range(accumulate)] for step in range(8)]
    launched, replayed = plain(), plain()
    recorder = Recorder(replayed)
    graphed = Graphed(replayed, capture=recorder)
    assert torch.equal(trained(launched, steps), trained(replayed, steps, graphed))
    assert all(map(torch.equal, launched.parameters(), replayed.parameters()))
    # the first batch of a step and the further ones are a recording each, in one pool of memory
    assert recorder.pools == [None, "pool"][: min(2, accumulate)]
    assert sum(graph.replays for graph in recorder.graphs) >= 8 * accumulate - WARM_UP - accumulate


def test_the_first_passes_are_launched_as_many_as_are_followed():
    steps = [[batch(number)] for number in range(8)]
    for followed, replays in ((0, 8 - WARM_UP), (6, 2)):
        network = plain()
        recorder = Recorder(network)
        trained(network, steps, Graphed(network, followed, recorder))
        assert [graph.replays for graph in recorder.graphs] == [replays]


def test_batches_of_another_shape_are_launched_and_gradients_are_never_mixed_up():
    sizes = [[4, 4], [4, 4], [4, 4], [4, 2], [2, 4], [4, 4], [2, 2], [4, 4]]
    steps = [[batch(10 * s + n, size) for n, size in enumerate(row)] for s, row in enumerate(sizes)]
    launched, replayed = plain(), plain()
    recorder = Recorder(replayed)
    assert torch.equal(trained(launched, steps), trained(replayed, steps, Graphed(replayed, capture=recorder)))
    assert all(map(torch.equal, launched.parameters(), replayed.parameters()))
    assert len(recorder.graphs) == 2


@pytest.mark.parametrize(
    "change",
    [
        lambda network: setattr(network[0].weight, "data", network[0].weight.data.clone()),
        lambda network: network.eval(),
        lambda network: network[0].weight.requires_grad_(False),
    ],
    ids=["moved", "mode", "frozen"],
)
def test_a_network_that_is_no_longer_what_was_recorded_is_recorded_anew(change):
    network = plain()
    recorder = Recorder(network)
    graphed = Graphed(network, capture=recorder)
    trained(network, [[batch(n)] for n in range(5)], graphed)
    assert len(recorder.graphs) == 1
    change(network)
    other = copy.deepcopy(network)
    for p in (*network.parameters(), *other.parameters()):
        p.grad = None
    more = [[batch(n)] for n in range(5, 8)]
    assert torch.equal(trained(network, more, graphed), trained(other, more))
    assert len(recorder.graphs) == 2
    assert all(map(torch.equal, network.parameters(), other.parameters()))


class Streams(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = Chain([AdditiveCoupling(nn.Linear(3, 3), nn.Linear(3, 3))], "reversible", exact=True)

    def forward(self, x):
        return join(*self.body(*split(x)))


def test_what_the_engine_says_of_a_recorded_pass_is_read_after_each_replay():
    network = Streams()
    network.body.verdicts = []
    recorder = Recorder(network)
    graphed = Graphed(network, capture=recorder)
    trained(network, [[batch(n)] for n in range(6)], graphed)
    assert len(recorder.graphs) == 1
    recording = graphed._recorded[True]
    assert recording.verdicts  # of the range and the fingerprint
    told = []
    recording.verdicts.append(lambda: told.append(True))
    trained(network, [[batch(7)], [batch(8)]], graphed)
    assert len(told) == 2


@pytest.mark.parametrize("kind", [VanishingReLU, ArtefactReLU])
def test_lambda_moves_on_in_a_recorded_pass(monkeypatch, kind):
    """A number would be that of the recording for ever."""

    def vanishing() -> nn.Sequential:
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(6, 8), kind(), nn.Linear(8, 3))

    losses = []
    for graphed in (False, True):
        network = vanishing()
        recorder = Recorder(network)
        replays = Graphed(network, capture=recorder) if graphed else None
        with monkeypatch.context() as patch:
            patch.setattr(
                torch.cuda, "is_current_stream_capturing", lambda: bool(recorder.graphs or recorder.recording)
            )
            for step in range(9):
                set_lambda(network, 1 - step / 8)
                losses.append(float(trained(network, [[batch(step)]], replays)))
        assert len(recorder.graphs) == graphed
    assert losses[:9] == pytest.approx(losses[9:], rel=1e-6)


def test_a_step_that_cannot_be_recorded_is_refused_with_the_reason():
    def capture(function, pool):
        raise RuntimeError("Cannot copy between CPU and CUDA tensors during CUDA graph capture\nmore of it")

    network = plain()
    with pytest.raises(ConfigError, match=r"cannot be recorded \(Cannot copy .* capture\).*cuda_graph=false"):
        trained(network, [[batch(n)] for n in range(5)], Graphed(network, capture=capture))

    def full(function, pool):
        raise torch.OutOfMemoryError("no memory")

    with pytest.raises(torch.OutOfMemoryError):
        trained(network, [[batch(n)] for n in range(5)], Graphed(network, capture=full))


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["device=cpu"], "needs one process on a GPU of NVIDIA's, and the device is cpu"),
        (["model=inn", "model.base=resnet8"], "would record model=inn anew in each step"),
        (["memory.enforce=true", "memory.limit=1GB"], "memory.enforce: true holds what the allocator reserves"),
    ],
)
def test_what_cannot_be_recorded_anywhere_is_foreseen(overrides, said):
    with pytest.raises(ConfigError, match=said):
        stages.foresee(memexp.compose(["dataset=digits", "cuda_graph=true", *overrides]))
