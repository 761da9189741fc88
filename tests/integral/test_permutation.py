"""Shortest orders of channels: optimal where few, near a much longer search, and the smooth order found again."""

import itertools

import numpy as np
import pytest
import torch

from memexp.integral import permutation


def smooth(n: int, seed: int) -> torch.Tensor:
    """Filters (n, 72) that change slowly with n."""
    generator = np.random.default_rng(seed)
    x = np.linspace(0, 1, n)[:, None]
    waves = np.sin(2 * np.pi * (x * generator.uniform(0.2, 1.5, (1, 72)) + generator.uniform(0, 1, (1, 72))))
    return torch.from_numpy(waves)


@pytest.mark.parametrize("n", range(1, 9))
def test_optimum_of_few(n: int) -> None:
    generator = torch.Generator().manual_seed(n)
    for _ in range(3):
        D = permutation.distances(torch.rand(n, 2, generator=generator))
        best = min(sum(D[a, b] for a, b in itertools.pairwise(p)) for p in itertools.permutations(range(n)))
        order = permutation.shortest(D)
        assert sorted(order) == list(range(n))
        assert permutation.length(D, order) == pytest.approx(best, rel=1e-12, abs=1e-12)


@pytest.mark.parametrize("seed", range(3))
def test_smooth_order_is_found_again(seed: int) -> None:
    shuffle = np.random.default_rng(seed).permutation(48)
    D = permutation.distances(smooth(48, seed)[shuffle])
    found = shuffle[permutation.shortest(D)]
    assert found.tolist() in (list(range(48)), list(range(47, -1, -1)))


def test_close_to_a_much_longer_search() -> None:
    generator = torch.Generator().manual_seed(0)
    rows = smooth(48, 5) + 0.7 * torch.randn(48, 72, generator=generator)
    D = permutation.distances(rows[torch.randperm(48, generator=generator)])
    short = permutation.length(D, permutation.shortest(D))
    random = np.random.default_rng(0)
    best = min(permutation.length(D, permutation._improve(D, random.permutation(48))) for _ in range(60))
    assert short <= 1.15 * best


def test_never_longer_than_it_was() -> None:
    D = permutation.distances(smooth(30, 1))
    assert permutation.length(D, permutation.shortest(D)) <= permutation.length(D, np.arange(30))


def test_distances_by_hand() -> None:
    D = permutation.distances(torch.tensor([[0.0, 1], [2, -1], [0, 1]]))
    assert D.tolist() == [[0, 4, 0], [4, 0, 4], [0, 4, 0]]


def test_gain_of_a_reversal_is_the_change_of_length() -> None:
    # one pass from each start must end where no reversal of any stretch shortens the path
    D = permutation.distances(torch.rand(24, 3, generator=torch.Generator().manual_seed(3)))
    order = permutation.shortest(D)
    least = permutation.length(D, order)
    for i, j in itertools.combinations(range(25), 2):
        turned = np.concatenate([order[:i], order[i:j][::-1], order[j:]])
        assert permutation.length(D, turned) >= least - 1e-6
