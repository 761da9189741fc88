"""A trace runs the network that it is given, and leaves it as it was; what comes out in a dataclass is an output, too."""

import copy
import pickle
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from memexp import channels, edits, integral, pruning

IMAGES = torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(0))


class Stateful(nn.Module):
    """What forwards do to their modules: a table made at the first call, parameters set by the first batch, counts, caches."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 1)
        self.scale = nn.Parameter(torch.ones(1, 8, 1, 1))
        self.table, self.seen, self.latest = None, [], {"width": 0}
        self.register_buffer("ready", torch.tensor(False))
        self.register_buffer("mean", torch.zeros(8))

    def forward(self, x):
        y = self.first(x)
        if self.table is None:
            self.table = torch.arange(4.0) @ torch.ones(4, 4)
        if not self.ready:
            self.scale.data.copy_(1 / (y.std((0, 2, 3), keepdim=True) + 1e-6))
            self.ready.fill_(True)
        self.mean.mul_(0.9).add_(y.mean((0, 2, 3)), alpha=0.1)
        self.seen.append(y.shape[1])
        self.latest["width"] = self.width = y.shape[1]
        return self.last(torch.relu(y * self.scale)) * self.table


class Tried(Stateful):
    """A trace runs it once more, to see what fewer channels do to what only training runs."""

    def __init__(self):
        super().__init__()
        self.aside = nn.Conv2d(3, 3, 1)
        self.register_buffer("calls", torch.tensor(0), persistent=False)

    def forward(self, x):
        self.calls += 1
        return super().forward(self.aside(x) if self.training else x)


def state(network):
    attributes = {key: value for key, value in vars(network).items() if not key.startswith("_")}
    tensors = {name: t.detach() for name, t in (*network.named_parameters(), *network.named_buffers())}
    return copy.deepcopy((attributes, tensors))


def same(a, b):
    if isinstance(a, Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    return all(map(same, a, b)) if isinstance(a, tuple) else type(a) is type(b) and a == b


@pytest.mark.parametrize("kind", [Stateful, Tried])
@pytest.mark.parametrize("run_before", [False, True])
def test_a_network_is_as_it_was(run_before, kind):
    network = kind()
    if run_before:
        network.eval()(IMAGES)
    before = state(network)
    channels.trace(network, IMAGES)
    assert same(state(network), before)
    pickle.dumps(network)


WRITES = {  # what a forward does to a weight of 8 filters
    "in_place": lambda w: w.data.mul_(2),
    "a_part": lambda w: w.data[1:, 0].zero_(),
    "other_memory": lambda w: setattr(w, "data", w.data * 2),
    "narrower": lambda w: setattr(w, "data", w.data[:4]),
    "another_order": lambda w: setattr(w, "data", w.data.to(memory_format=torch.channels_last)),
    "many": lambda w: torch._foreach_add_([w.data, w.data[0]], 1.0),
    "out": lambda w: torch.add(w.data, 1, out=w.data),
}


class Writing(nn.Module):
    def __init__(self, write):
        super().__init__()
        self.first, self.last, self.write = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 1), write
        self.spare = nn.Parameter(torch.randn(8, 3, 3, 3))
        self.tied = self.spare

    def forward(self, x):
        self.write(self.spare)
        return self.last(torch.relu(self.first(x)))


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
def test_a_weight_is_as_it_was_however_it_is_written(write):
    network = Writing(write)
    spare, memory, before = network.spare, network.spare.data_ptr(), network.spare.detach().clone()
    channels.trace(network, IMAGES)
    assert network.spare is network.tied is spare
    assert (spare.data_ptr(), spare.stride()) == (memory, before.stride())
    assert torch.equal(spare, before)


class Copies(TorchDispatchMode):
    """The sizes of what is copied."""

    def __init__(self):
        super().__init__()
        self.sizes = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func in (torch.ops.aten.clone.default, torch.ops.aten.equal.default):
            self.sizes.append(args[0].numel())
        return func(*args, **(kwargs or {}))


def test_weights_that_nothing_writes_to_are_not_copied():
    network = nn.Sequential(nn.Conv2d(3, 64, 3), nn.BatchNorm2d(64), nn.ReLU(inplace=True), nn.Conv2d(64, 64, 3))
    with Copies() as copies:
        channels.trace(network, IMAGES)
    assert max(copies.sizes) <= IMAGES.numel() < network[3].weight.numel()


def test_a_pruned_network_is_what_its_edit_makes_of_a_new_one():
    network, fresh = Stateful(), Stateful()
    fresh.load_state_dict(network.state_dict())
    pruned, edit = pruning.prune(network.eval(), IMAGES, ratio=0.5)
    again = edits.apply(fresh.eval(), edit)
    assert torch.equal(pruned(IMAGES), again(IMAGES))


@dataclass
class Features:
    scores: Tensor | None
    maps: list[Tensor]


class InDataclass(nn.Module):
    def __init__(self, beside):
        super().__init__()
        self.first, self.last, self.beside = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 1), beside

    def forward(self, x):
        y = torch.relu(self.first(x))
        return (self.last(y), Features(None, [y])) if self.beside else Features(self.last(y), [])


def test_channels_of_outputs_in_a_dataclass_stay():
    with pytest.raises(ValueError, match="no layer of this network has channels"):
        pruning.prune(InDataclass(beside=True), IMAGES, ratio=0.5)
    pruned, _ = pruning.prune(InDataclass(beside=False), IMAGES, ratio=0.5)
    assert pruned(IMAGES).scores.shape == (2, 4, 4, 4)
    assert pruned.first.out_channels == 4
    half = integral.convert(InDataclass(beside=False), IMAGES).discretize(0.5)
    assert half.first.out_channels == 4
