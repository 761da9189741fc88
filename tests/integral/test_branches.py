"""Integral networks as branches of recomputed steps: the recomputation is of the sizes that the first pass has drawn."""

import copy

import pytest
import torch
from torch import Tensor, nn

from memexp.backprop import AdditiveCoupling, Chain
from memexp.integral import convert


def branch(seed: int) -> nn.Module:
    plain = nn.Sequential(nn.Conv2d(4, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 4, 3, padding=1)).double()
    return convert(plain, torch.zeros(1, 4, 5, 5, dtype=torch.float64), seed=seed)


def trained(steps: list[nn.Module], backprop: str, passes: int) -> list[Tensor]:
    """Gradients of two steps, of some passes each that wait for one backward."""
    chain = Chain(copy.deepcopy(steps), backprop=backprop).train()
    generator = torch.Generator().manual_seed(0)
    for _ in range(2):
        streams = [torch.randn(2, 4, 5, 5, generator=generator, dtype=torch.float64) for _ in range(2 * passes)]
        outputs = [chain(*streams[i : i + 2]) for i in range(0, 2 * passes, 2)]
        sum((y.square().sum() + x.sum()) for y, x in outputs).backward()
    return [p.grad for p in chain.parameters()]


@pytest.mark.parametrize("backprop", ["reversible", "checkpointed", "light"])
def test_branches_are_recomputed_at_the_sizes_that_were_drawn(backprop: str) -> None:
    torch.manual_seed(0)
    steps = [AdditiveCoupling(branch(2 * i), branch(2 * i + 1)) for i in range(2)]
    for found, expected in zip(trained(steps, backprop, 1), trained(steps, "stored", 1), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("backprop", ["reversible", "checkpointed"])
def test_two_passes_of_branches_are_recomputed_each_at_its_own(backprop: str) -> None:
    """By differences of the loss."""
    torch.manual_seed(0)
    chain = Chain([AdditiveCoupling(branch(1), branch(2))], backprop=backprop).train()
    streams = [torch.randn(2, 4, 5, 5, dtype=torch.float64) for _ in range(4)]
    state = copy.deepcopy(chain.state_dict())
    name, weight = next(iter(chain.named_parameters()))
    change = 1e-6 * torch.randn(weight.shape, dtype=torch.float64)

    def loss(times: int) -> Tensor:
        chain.load_state_dict(state | {name: state[name] + times * change})  # the step that sizes are drawn for, too
        first, second = chain(*streams[:2]), chain(*streams[2:])
        return first[0].square().sum() + 2 * second[0].square().sum()

    loss(0).backward()
    assert weight.grad is not None
    with torch.enable_grad():
        difference = (loss(1) - loss(-1)).detach()
    torch.testing.assert_close(difference, 2 * (weight.grad * change).sum(), rtol=1e-5, atol=0.0)
