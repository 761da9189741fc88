"""What must hold of any network, on networks that nobody thought of."""

import copy

import pytest
import torch
from equality import choose, difference, randomise
from random_networks import RandomNetwork
from torch import nn

from memexp import channels, fusing
from memexp.backprop import AdditiveCoupling, Chain
from memexp.integral import convert

pytestmark = pytest.mark.filterwarnings("ignore:input's size at dim=1 does not match num_features")
SEEDS = [
    pytest.param(range(start, start + 20), marks=[pytest.mark.long] if start >= 20 else [], id=f"from {start}")
    for start in range(0, 400, 20)
]


def drawn(seed: int) -> tuple[nn.Module, torch.Tensor]:
    network = randomise(RandomNetwork(seed), seed).double()
    return network, torch.randn(2, network.channels, 8, 8, dtype=torch.float64)


def error(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).abs().max() / expected.abs().max().clamp(min=1e-3))


@pytest.mark.parametrize("seeds", SEEDS)
@torch.no_grad()
def test_narrowed_is_masked(seeds):
    removed = 0
    for seed in seeds:
        network, x = drawn(seed)
        graph = channels.trace(network, x)
        removed += len(graph.groups)
        for ratio in (0.3, 0.6):
            assert not graph.groups or difference(network, graph, choose(graph, ratio), x)[1] < 1e-10, seed
    assert removed > 2 * len(seeds)


def converted(network: nn.Module, x: torch.Tensor) -> nn.Module | None:
    try:
        return convert(copy.deepcopy(network), x).eval()
    except ValueError as refused:
        if "no group of channels can be made continuous" in str(refused):
            return None
        raise


@pytest.mark.parametrize("seeds", SEEDS)
@torch.no_grad()
def test_an_integral_network_is_the_discrete_one_at_its_size(seeds):
    count = 0
    for seed in seeds:
        network, x = drawn(seed)
        if (integral := converted(network, x)) is None:
            continue
        count += 1
        assert error(integral(x), network(x)) < 1e-10, seed
        integral.resize(0.6)
        assert error(integral.discretize(0.6)(x), integral(x)) < 1e-10, seed
    assert count > len(seeds) / 3


@pytest.mark.parametrize("seeds", SEEDS)
@torch.no_grad()
def test_fused_is_trained(seeds):
    for seed in seeds:
        network, x = drawn(seed)
        for merge in ("none", "block", "all"):
            other = torch.randn_like(x)
            assert error(fusing.fuse(network, x, merge).network(other), network(other)) < 1e-10, (seed, merge)


@pytest.mark.parametrize("seeds", SEEDS)
def test_recomputing_strategies_give_the_gradients_of_stored(seeds):
    """Bit for bit, with dropout and running statistics, over two passes."""
    for seed in seeds:
        blocks = [nn.Sequential(RandomNetwork(100 * seed + i, 3, 4, same=True), nn.Dropout(0.2)) for i in range(4)]
        streams = [torch.randn(3, 4, 8, 8, requires_grad=True) for _ in range(2)]
        couplings = [AdditiveCoupling(*blocks[:2]), AdditiveCoupling(*blocks[2:])]
        for steps, inputs in ((blocks, streams[:1]), (couplings, streams)):
            expected = after_two_passes(steps, inputs, "stored")
            for strategy in ("light", "checkpointed"):
                found = after_two_passes(steps, inputs, strategy)
                assert found.keys() == expected.keys()
                assert all(torch.equal(found[name], expected[name]) for name in expected), (seed, strategy)


def after_two_passes(steps: list[nn.Module], inputs: list[torch.Tensor], strategy: str) -> dict[str, torch.Tensor]:
    """Gradients and buffers by name."""
    network = Chain(copy.deepcopy(steps), strategy).train()
    for step in range(2):
        torch.manual_seed(step)
        out = network(*inputs)
        sum(y.square().sum() for y in (out if isinstance(out, tuple) else (out,))).backward()
    found = {f"{name}.grad": p.grad for name, p in network.named_parameters() if p.grad is not None}
    return {**found, **dict(network.named_buffers())}
