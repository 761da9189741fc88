"""A pass that is recorded and replayed: with a stand-in for the CUDA graph, which repeats operations and no Python."""

import copy
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import memexp
from memexp import build, models, stages
from memexp.backprop import AdditiveCoupling, Chain, join, split
from memexp.config import ConfigError
from memexp.models import families
from memexp.models.vanishing import ArtefactReLU, VanishingReLU, set_lambda
from memexp.training import recipe
from memexp.training.graphed import WARM_UP, Graphed
from memexp.training.loop import Trainer
from memexp.training.precision import Precision
from memexp.training.step import train_step
from memexp.training.step_times import StepTimes


class Operations(TorchDispatchMode):
    """Every operation, with the tensors that it read and wrote: what a CUDA graph holds of a pass, and no more."""

    def __init__(self):
        super().__init__()
        self.all = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        self.all.append((func, args, kwargs or {}, result))
        return result


class Graph:
    """Replays the operations into the tensors of the recording."""

    def __init__(self, operations):
        self.operations, self.replays = operations, 0

    def pool(self):
        return "pool"

    def replay(self):
        self.replays += 1
        with torch.no_grad():
            for func, args, kwargs, result in self.operations:
                read = {t.untyped_storage()._cdata for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)}
                for own, new in zip(tree_leaves(result), tree_leaves(func(*args, **kwargs)), strict=True):
                    if (
                        isinstance(own, torch.Tensor) and own.untyped_storage()._cdata not in read
                    ):  # no view, not in place
                        own.copy_(new)


class Recorder:
    """Records a pass of a network and carries nothing out, as a capture does."""

    def __init__(self, network):
        self.network, self.graphs, self.pools, self.recording = network, [], [], False

    def __call__(self, function, pool):
        state = [(t, t.detach().clone()) for t in (*self.network.parameters(), *self.network.buffers())]
        state += [(p.grad, p.grad.clone()) for p in self.network.parameters() if p.grad is not None]
        self.recording = True
        with Operations() as operations:
            loss = function()
        self.recording = False
        with torch.no_grad():
            for tensor, value in state:
                tensor.copy_(value)
        self.graphs.append(Graph(operations.all))
        self.pools.append(pool)
        return self.graphs[-1], loss


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
    assert sum(graph.replays for graph in recorder.graphs) == (8 - WARM_UP) * accumulate


@pytest.mark.parametrize("accumulate", [1, 3])
def test_the_first_steps_are_launched_those_that_are_followed_and_some_more(accumulate):
    steps = [[batch(number)] * accumulate for number in range(8)]
    for followed, replays in ((0, 8 - WARM_UP), (3, 5 - WARM_UP)):
        network = plain()
        recorder = Recorder(network)
        trained(network, steps, Graphed(network, followed, recorder))
        assert sum(graph.replays for graph in recorder.graphs) == replays * accumulate


def test_batches_of_another_shape_are_launched_and_gradients_are_never_mixed_up():
    sizes = [[4, 4], [4, 4], [4, 4], [4, 2], [2, 4], [4, 4], [2, 2], [4, 4]]
    steps = [[batch(10 * s + n, size) for n, size in enumerate(row)] for s, row in enumerate(sizes)]
    launched, replayed = plain(), plain()
    recorder = Recorder(replayed)
    assert torch.equal(trained(launched, steps), trained(replayed, steps, Graphed(replayed, capture=recorder)))
    assert all(map(torch.equal, launched.parameters(), replayed.parameters()))
    assert len(recorder.graphs) == 2


@pytest.mark.parametrize("number", range(6))
def test_a_batch_of_another_shape_than_all_others_is_not_what_is_recorded(number):
    network = plain()
    recorder = Recorder(network)
    steps = [[batch(n, size=2 if n == number else 4)] for n in range(12)]
    trained(network, steps, Graphed(network, capture=recorder))
    (graph,) = recorder.graphs
    assert graph.replays >= 12 - WARM_UP - 2


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
    """As a number it would stay what it was in the recording."""
    losses = {}
    for replayed in (False, True):
        torch.manual_seed(0)
        network = nn.Sequential(nn.Linear(6, 8), kind(), nn.Linear(8, 3))
        recorder = Recorder(network)
        monkeypatch.setattr(models.vanishing, "_made_once", lambda x, r=recorder: r.recording)
        graphed = Graphed(network, capture=recorder) if replayed else None
        losses[replayed] = []
        for step in range(9):
            set_lambda(network, 1 - step / 8)
            losses[replayed].append(float(trained(network, [[batch(step)]], graphed)))
        assert len(recorder.graphs) == replayed
    assert losses[True] == pytest.approx(losses[False], rel=1e-6)


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


class Breaking:
    """torch.cuda.graph where what is inside fails: the end of the recording fails, too, and hides why."""

    modes = []

    def __init__(self, graph, pool=None, capture_error_mode="global"):
        self.modes.append(capture_error_mode)

    def __enter__(self):
        return self

    def __exit__(self, kind, error, trace):
        if error is not None:
            raise RuntimeError("CUDA error: operation failed due to a previous error during capture")


@pytest.mark.parametrize(
    ("error", "told", "said"),
    [
        (RuntimeError("Cannot copy between CPU and CUDA"), ConfigError, "cannot be recorded \\(Cannot copy between"),
        (torch.OutOfMemoryError("CUDA out of memory"), torch.OutOfMemoryError, "CUDA out of memory"),
        (ValueError("no such layer"), ValueError, "no such layer"),
    ],
    ids=["waits", "memory", "of its own"],
)
def test_a_recording_that_breaks_off_tells_what_broke_it(monkeypatch, error, told, said):
    """And threads beside it, such as a loader's that pins batches, do not break it."""
    monkeypatch.setattr(torch.cuda, "CUDAGraph", object)
    monkeypatch.setattr(torch.cuda, "graph", Breaking)
    network, calls = plain(), []

    def fail(module, inputs):
        calls.append(module)
        if len(calls) > WARM_UP:
            raise error

    network.register_forward_pre_hook(fail)
    with pytest.raises(told, match=said):
        trained(network, [[batch(n)] for n in range(WARM_UP + 1)], Graphed(network))
    assert set(Breaking.modes) == {"thread_local"}


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


SMALL = {
    "revnet": ["model=revnet", "model.units=[2,1]", "model.channels=[8,8,16]"],
    "exact": ["model=revnet", "model.units=[2,1]", "model.channels=[8,8,16]", "backprop.exact=true"],
    "resnet": ["model=resnet", "model.kind=simple", "model.depth=4"],
    "heunnet": ["model=heunnet", "model.depth=4"],
    "reducenet": ["model=reducenet", "model.depth=8"],
    "vgg16": ["model=vgg16", "model.layout=cifar", "model.width=0.125"],
}
OPTIONS = [["optimizer=ranger", "ema=0.9"], ["clip_grad=0.5", "precision=bf16"], []]


@pytest.mark.parametrize("name", SMALL)
def test_networks_train_replayed_as_launched_under_every_strategy(name):
    strategies = families.proposed(memexp.compose(["dataset=digits", *SMALL[name]]).model, ())
    for number, strategy in enumerate(strategies):
        exact = name == "exact" and strategy in ("adjoint", "light", "budget")
        if strategy == "budget" or exact:
            continue
        cfg = memexp.compose(["dataset=digits", *SMALL[name], f"backprop={strategy}", *OPTIONS[number % len(OPTIONS)]])
        weights = []
        for replayed in (False, True):
            torch.manual_seed(0)
            network = build.network(cfg)
            made = recipe.make(cfg, network, torch.device("cpu"), 10)
            recorder = Recorder(network)
            made.graphed = Graphed(network, capture=recorder) if replayed else None
            generator = torch.Generator().manual_seed(0)
            for _ in range(6):
                images = torch.randn(4, 3, 32, 32, generator=generator)
                made.step(network, [(images, torch.randint(10, (4,), generator=generator))])
                if made.average is not None:
                    made.average.update_parameters(network)
            weights.append({**network.state_dict(), **(made.average.state_dict() if made.average is not None else {})})
            assert [graph.replays for graph in recorder.graphs] == ([3] if replayed else [])
        differing = [key for key, value in weights[0].items() if not torch.equal(value, weights[1][key])]
        assert (strategy, differing) == (strategy, [])


@pytest.mark.parametrize(("graphed", "median"), [(None, 5.0), (object(), 1.0)])
def test_the_step_that_is_recorded_is_none_of_those_whose_time_is_told(graphed, median):
    trainer = Trainer.__new__(Trainer)
    trainer.place, trainer.recipe = (
        SimpleNamespace(meter=SimpleNamespace(tracked_steps=2)),
        SimpleNamespace(graphed=graphed),
    )
    trainer.trace, trainer.times, trainer._images = None, StepTimes(), 8
    trainer.times.seconds = [3.0] * (2 + WARM_UP) + [9.0, 1.0]  # recorded, replayed
    assert trainer.timing()["step_median"] == median
