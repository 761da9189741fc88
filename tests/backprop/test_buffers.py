"""Buffers that a block moves: once in a training step, however it writes, and its recomputation sees them as they were."""

import copy

import pytest
import torch
from torch import nn

from memexp.backprop import AdditiveCoupling, Chain, apply


class Block(nn.Module):
    """Its output depends on a buffer, which it moves."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 4)
        self.make()

    def make(self):
        self.register_buffer("mean", torch.zeros(4))

    def forward(self, x):
        y = torch.tanh(self.layer(x) - self.read(x))
        self.move(x.detach().mean(0))
        return y

    def read(self, x):
        return self.mean

    def move(self, mean):
        self.mean.mul_(0.9).add_(mean, alpha=0.1)


class ThroughData(Block):
    def move(self, mean):
        self.mean.data.mul_(0.9).add_(mean, alpha=0.1)


class ThroughDataOfALargeOne(ThroughData):
    def make(self):
        self.register_buffer("mean", torch.zeros(20000, 4))

    def read(self, x):
        return self.mean.mean(0)


class Assigned(Block):
    def move(self, mean):
        self.mean = self.mean * 0.9 + mean * 0.1


class FirstNone(Assigned):
    def make(self):
        self.register_buffer("mean", None)

    def read(self, x):
        return 0 if self.mean is None else self.mean

    def move(self, mean):
        self.mean = mean if self.mean is None else self.mean * 0.9 + mean * 0.1


class FirstMissing(Assigned):
    def make(self):
        pass

    def read(self, x):
        if not hasattr(self, "mean"):
            self.register_buffer("mean", torch.zeros(4))
        return self.mean


class Renorm(nn.BatchNorm1d):
    """Reads its running statistics in training, too (batch renormalisation, arXiv 1702.03275)."""

    def forward(self, x):
        off = self.running_mean - x.detach().mean(0)
        return super().forward(x) + off * torch.rsqrt(self.running_var + self.eps)


class SquashedRenorm(Renorm):
    def forward(self, x):
        return torch.tanh(super().forward(x))


class OfAUsersNorm(Block):
    def make(self):
        self.norm = Renorm(4)

    def forward(self, x):
        return torch.tanh(self.norm(self.layer(x)))


class ByHand(Block):
    """A norm of torch's whose statistics and weights are handed to the function of it."""

    def make(self):
        self.norm = nn.BatchNorm1d(4)

    def forward(self, x):
        norm = self.norm
        own = norm.running_mean, norm.running_var, norm.weight, norm.bias
        return torch.tanh(nn.functional.batch_norm(self.layer(x), *own, self.training, 0.1))


KINDS = [Block, ThroughData, ThroughDataOfALargeOne, Assigned, FirstNone, FirstMissing, OfAUsersNorm, ByHand]


def trained(chain, streams, steps=3):
    for _ in range(steps):
        chain.zero_grad()
        outputs = chain(*streams)
        outputs = (outputs,) if isinstance(outputs, torch.Tensor) else outputs
        sum(y.square().sum() for y in outputs).backward()
    return [p.grad for p in chain.parameters()], list(chain.buffers())


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("backprop", ["light", "checkpointed"])
def test_a_buffer_is_moved_once_and_recomputed_with_what_it_was(kind, backprop):
    torch.manual_seed(0)
    steps, x = [kind() for _ in range(3)], torch.randn(5, 4)
    expected, found = (trained(Chain(copy.deepcopy(steps), b), (x,)) for b in ("stored", backprop))
    for a, b in zip(found, expected, strict=True):
        assert all(map(torch.equal, a, b))


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_also_where_the_step_is_undone(kind):
    torch.manual_seed(0)
    steps, streams = [AdditiveCoupling(kind(), kind()) for _ in range(2)], (torch.randn(5, 4), torch.randn(5, 4))
    stored = trained(Chain(copy.deepcopy(steps), "stored", exact=True), streams)
    undone = trained(Chain(copy.deepcopy(steps), "reversible", exact=True), streams)
    assert all(map(torch.equal, undone[0], stored[0]))
    assert all(map(torch.equal, undone[1], stored[1]))


@pytest.mark.parametrize("backprop", ["light", "checkpointed"])
def test_also_where_a_users_norm_is_the_block(backprop):
    torch.manual_seed(0)
    network, x = nn.Sequential(nn.Linear(4, 4), SquashedRenorm(4)), torch.randn(5, 4)
    expected = trained(copy.deepcopy(network), (x,))
    found = trained(apply(network, backprop, blocks=[SquashedRenorm]), (x,))
    for a, b in zip(found, expected, strict=True):
        assert all(map(torch.equal, a, b))


class Warm(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 4)
        self.register_buffer("warmth", torch.ones(()))

    def forward(self, x):
        return torch.tanh(self.layer(x) * self.warmth)


def test_a_buffer_that_is_replaced_before_backward_is_recomputed_with_the_one_that_was_read():
    torch.manual_seed(0)
    steps, x = [Warm() for _ in range(2)], torch.randn(5, 4)

    def run(chain):
        loss = 0
        for warmth in (1.0, 2.0):
            for step in chain:
                step.warmth = torch.tensor(warmth)
            loss = loss + chain(x).square().sum()
        loss.backward()
        return [p.grad for p in chain.parameters()]

    found, expected = (run(Chain(copy.deepcopy(steps), b)) for b in ("checkpointed", "stored"))
    assert all(map(torch.equal, found, expected))


def test_one_that_is_written_to_before_backward_is_refused():
    chain = Chain([Warm(), Warm()], "checkpointed")
    y = chain(torch.randn(5, 4)).sum()
    chain[1].warmth.fill_(2.0)
    with pytest.raises(
        RuntimeError, match="the buffer warmth of Warm was changed in place between forward and backward"
    ):
        y.backward()


def test_statistics_without_weights_are_computed_in_the_type_of_the_first_pass():
    torch.manual_seed(0)
    steps = [nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8, affine=False), nn.Tanh()) for _ in range(2)]

    def run(network):
        with torch.autocast("cpu", torch.bfloat16):
            y = network(torch.randn(16, 8, generator=torch.Generator().manual_seed(0)) + 3)
        (y.float().square() * torch.arange(8)).sum().backward()
        return [*(p.grad for p in network.parameters()), *network.buffers()]

    found, expected = (run(apply(nn.Sequential(*copy.deepcopy(steps)), b)) for b in ("checkpointed", "stored"))
    assert all(map(torch.equal, found, expected))


def test_backward_where_nothing_is_recorded_is_refused():
    y = Chain([Warm()], "checkpointed")(torch.randn(5, 4)).sum()
    with (
        torch.inference_mode(),
        pytest.raises(RuntimeError, match=r"backward of step 0 \(Warm\) inside .*inference_mode"),
    ):
        y.backward()
