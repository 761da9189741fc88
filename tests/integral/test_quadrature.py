"""Quadratures on integrals that are known: weights sum to 1, and errors fall at the stated order."""

import itertools
import math

import pytest
import torch

from memexp.integral import quadrature


@pytest.mark.parametrize("name", quadrature.NAMES)
@pytest.mark.parametrize("m", [1, 2, 3, 4, 5, 8, 9, 64])
def test_weights_sum_to_one(name: str, m: int) -> None:
    P = quadrature.nodes(name, m)
    assert len(P) == m
    assert float(quadrature.weights(name, P).sum()) == pytest.approx(1, abs=1e-14)


@pytest.mark.parametrize("name", ["riemann", "trapezoidal", "simpson"])
@pytest.mark.parametrize("nodes", [[0.2, 0.5, 0.8], [0.0, 0.3, 0.4, 0.6], [0.5, 1.0], [0.1, 0.2, 0.25, 0.4, 0.9]])
def test_nodes_that_do_not_span_it_stand_for_all_of_it(name: str, nodes: list[float]) -> None:
    q = quadrature.weights(name, torch.tensor(nodes, dtype=torch.float64))
    assert float(q.sum()) == pytest.approx(1, abs=1e-14)


@pytest.mark.parametrize(("name", "order"), [("riemann", 1), ("trapezoidal", 2), ("simpson", 4), ("gauss_legendre", 4)])
@pytest.mark.parametrize("odd", [0, 1])
def test_order(name: str, order: int, odd: int) -> None:
    errors = []
    for m in (32 + odd, 64 + odd, 128 + odd):
        P = quadrature.nodes(name, m)
        f = torch.exp(P) * torch.sin(3 * P) + P.sqrt() ** 5
        right = (math.e * (math.sin(3) - 3 * math.cos(3)) + 3) / 10 + 2 / 7
        errors.append(abs(float((quadrature.weights(name, P) * f).sum()) - right))
    observed = [math.log2(a / b) for a, b in itertools.pairwise(errors)]
    lowest = min(order, 3.5)  # P^(5/2) is not smooth enough at 0 for more
    assert all(lowest - 0.2 < o < order + 1.2 for o in observed), (errors, observed)


@pytest.mark.parametrize(
    ("name", "degree"), [("riemann", 0), ("trapezoidal", 1), ("simpson", 2), ("gauss_legendre", 3)]
)
def test_exact_for_polynomials(name: str, degree: int) -> None:
    generator = torch.Generator().manual_seed(1)
    P = quadrature.nodes(name, 11)
    if name != "gauss_legendre":
        P = torch.cat([torch.zeros(1), torch.rand(9, generator=generator).sort().values, torch.ones(1)]).double()
    q = quadrature.weights(name, P)
    for power in range(degree + 1):
        assert float((q * P**power).sum()) == pytest.approx(1 / (power + 1), abs=1e-12)


def test_trapezoid_by_hand() -> None:
    q = quadrature.weights("trapezoidal", torch.tensor([0, 0.25, 1], dtype=torch.float64))
    assert q.tolist() == [0.125, 0.5, 0.375]


def test_errors() -> None:
    with pytest.raises(ValueError, match="use one of trapezoidal, riemann, simpson, gauss_legendre"):
        quadrature.nodes("midpoint", 4)
    with pytest.raises(ValueError, match="partition of 0 nodes"):
        quadrature.nodes("simpson", 0)
    with pytest.raises(ValueError, match="nodes of its own"):
        quadrature.weights("gauss_legendre", quadrature.uniform(6))
