"""Trainable partitions: ordered and spanning [0, 1] whatever happens to their delta."""

import pytest
import torch

from memexp.integral.partition import Partition
from memexp.integral.quadrature import uniform


@pytest.mark.parametrize("m", [2, 3, 10, 307])
def test_starts_uniform(m: int) -> None:
    torch.testing.assert_close(Partition(m)(), uniform(m), rtol=0, atol=1e-14)


@pytest.mark.parametrize("scale", [1e-30, 1e-3, 1.0, 1e4, 1e30])
@pytest.mark.parametrize("m", [2, 9, 307])
def test_ordered_and_spanning_for_any_delta(m: int, scale: float) -> None:
    generator = torch.Generator().manual_seed(m)
    partition = Partition(m)
    for _ in range(50):
        with torch.no_grad():
            partition.delta.copy_(torch.randn(m - 1, generator=generator) ** 3 * scale)
        P = partition()
        assert P[0] == 0
        assert P[-1] == 1
        assert (P[1:] > P[:-1]).all()


def test_zero_delta_is_uniform() -> None:
    partition = Partition(5)
    torch.nn.init.zeros_(partition.delta)
    torch.testing.assert_close(partition(), uniform(5))


def test_any_gradient_step_keeps_it() -> None:
    partition = Partition(20)
    target = uniform(20) ** 2
    optimizer = torch.optim.SGD(partition.parameters(), lr=50.0)
    first = (partition() - target).square().sum()
    for _ in range(30):
        optimizer.zero_grad()
        loss = (partition() - target).square().sum()
        loss.backward()
        optimizer.step()
        P = partition()
        assert P[0] == 0
        assert P[-1] == 1
        assert (P[1:] > P[:-1]).all()
    assert loss < first / 2


def test_too_few_nodes() -> None:
    with pytest.raises(ValueError, match="use at least 2"):
        Partition(1)
