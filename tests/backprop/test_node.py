"""The autograd function inside DistributedDataParallel: two gloo processes against one with the whole batch."""

import sys
from pathlib import Path

import pytest
import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parent))  # the processes import this file without pytest's conftest

from chain_networks import basic, chain, couplings, loss, streams, worst

from memexp.backprop import Chain, EulerStep
from memexp.memory import track
from memexp.training import distribution
from memexp.training.distribution import World


def network(backprop, options):
    torch.manual_seed(0)
    if backprop == "adjoint":
        fs = [nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.Tanh()) for _ in range(4)]
        return Chain([EulerStep(f, 0.1) for f in fs], backprop=backprop, **options).double()
    # BN in eval mode: statistics of half a batch are not those of the batch
    return Chain(couplings(4, boundary=2), backprop=backprop, **options).double().eval()


def inputs(backprop):
    x = [x.detach() for x in streams(batch=4, dtype=torch.float64)]
    return x[:1] if backprop == "adjoint" else x


STRATEGIES = [("reversible", {}), ("checkpointed", {"every": 2}), ("adjoint", {"refine": 30}), ("light", {})]


def train(rank, store, results):
    distribution.start(World(rank, 2), f"file://{store}")
    try:
        for backprop, options in STRATEGIES:
            model = nn.parallel.DistributedDataParallel(network(backprop, options), bucket_cap_mb=0.001)
            half = [x.chunk(2)[rank] for x in inputs(backprop)]
            for _ in range(2):  # buckets are rebuilt after the first pass
                loss(model(*half)).backward()
            torch.save([p.grad for p in model.parameters()], f"{results}-{backprop}-{rank}")
    finally:
        distribution.stop()


def test_two_processes_give_the_gradients_of_one(tmp_path):
    torch.multiprocessing.spawn(train, (tmp_path / "store", tmp_path / "grads"), nprocs=2)
    for backprop, options in STRATEGIES:
        alone = Chain(network(backprop, options), backprop="stored")
        for _ in range(2):
            loss(alone(*inputs(backprop))).backward()
        expected = [p.grad for p in alone.parameters()]
        for rank in (0, 1):
            found = torch.load(tmp_path / f"grads-{backprop}-{rank}", weights_only=True)
            assert worst(found, expected) < 1e-9


@pytest.mark.parametrize("every", [1, 2])
def test_what_nobody_reads_of_a_recomputation_is_left_out(every):
    """Two of three convolutions are done again, from the second pass on, and the gradients stay the same bits."""
    steps = [EulerStep(nn.Sequential(*basic(8), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 1))) for _ in range(4)]
    networks = [chain(steps, "stored"), chain(steps, "checkpointed", every=every)]
    x = torch.randn(16, 8, 32, 32)
    macs = []
    for _ in range(3):
        for network in networks:
            network.zero_grad()
            report = track(lambda n=network: loss(n(x)).backward(), network)
        macs.append(report.flops_recomputed)
        pairs = zip(networks[0].parameters(), networks[1].parameters(), strict=True)
        assert all(torch.equal(p.grad, q.grad) for p, q in pairs)
    assert all(map(torch.equal, networks[0].buffers(), networks[1].buffers()))
    last = 4 // every * 2 * 16 * 32 * 32 * 8 * 8  # a convolution of 1x1 a group
    assert macs[0] - macs[1] == macs[0] - macs[2] == last


def test_a_module_that_keeps_what_it_has_computed_sees_it_every_time():
    class Keeping(nn.Module):
        def __init__(self):
            super().__init__()
            self.f = nn.Conv2d(8, 8, 3, padding=1)

        def forward(self, x):
            self.seen = self.f(x)
            return self.seen

    network = Chain([EulerStep(Keeping())], "checkpointed")
    x = torch.randn(16, 8, 32, 32)
    for _ in range(3):
        loss(network(x)).backward()
        assert torch.equal(network[0].f.seen, network[0].f.f(x))


def test_other_sizes_and_frozen_weights_are_noted_anew():
    steps = [EulerStep(basic(8)) for _ in range(2)]
    networks = [chain(steps, "stored"), chain(steps, "checkpointed")]
    for count, frozen in ((16, False), (16, True), (32, True), (16, False), (32, False)):
        for network in networks:
            network.zero_grad()
            network[1].f.requires_grad_(not frozen)
            x = torch.randn(count, 8, 32, 32, generator=torch.Generator().manual_seed(1)).requires_grad_()
            loss(network(x)).backward()
        pairs = zip(networks[0].parameters(), networks[1].parameters(), strict=True)
        assert all(torch.equal(p.grad, q.grad) for p, q in pairs if p.grad is not None or q.grad is not None)
