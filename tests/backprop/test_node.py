"""The autograd function inside DistributedDataParallel: two gloo processes against one with the whole batch."""

import sys
from pathlib import Path

import torch
from torch import distributed, nn

sys.path.insert(0, str(Path(__file__).parent))  # the processes import this file without pytest's conftest

from chain_networks import couplings, loss, streams, worst

from memexp.backprop import Chain, EulerStep


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
    distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    try:
        for backprop, options in STRATEGIES:
            model = nn.parallel.DistributedDataParallel(network(backprop, options), bucket_cap_mb=0.001)
            half = [x.chunk(2)[rank] for x in inputs(backprop)]
            for _ in range(2):  # buckets are rebuilt after the first pass
                loss(model(*half)).backward()
            torch.save([p.grad for p in model.parameters()], f"{results}-{backprop}-{rank}")
    finally:
        distributed.destroy_process_group()


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
