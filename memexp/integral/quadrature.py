"""Quadratures: weights q with sum_l q_l f(P_l) ~ the integral of f over [0, 1], and the nodes P that each wants.

The first three take any ascending nodes P, so that a partition can be trained; where these do not span [0, 1], the first and
the last stand for what is beyond them. Gauss-Legendre has nodes of its own. Errors for smooth f at m evenly spaced nodes:
riemann O(1/m), trapezoidal O(1/m^2), simpson and gauss_legendre O(1/m^4).
"""

import itertools

import torch
from torch import Tensor

NAMES = ("trapezoidal", "riemann", "simpson", "gauss_legendre")


def uniform(m: int) -> Tensor:
    """P_k = k h, h = 1 / (m - 1), in float64; the middle for m = 1."""
    return torch.arange(m, dtype=torch.float64) / (m - 1) if m > 1 else torch.full((1,), 0.5, dtype=torch.float64)


def nodes(quadrature: str, m: int) -> Tensor:
    """The m nodes of an untrained partition: uniform but for Gauss-Legendre.

    Raises ValueError for a quadrature that there is not, and for fewer nodes than 1.
    """
    check(quadrature)
    if m < 1:
        raise ValueError(f"a partition of {m} nodes: use at least 1")
    return _gauss_legendre(m)[0] if quadrature == "gauss_legendre" else uniform(m)


def weights(quadrature: str, P: Tensor) -> Tensor:
    """q at the nodes P, (m,) ascending; sums to 1; differentiable in P.

    Raises ValueError for a quadrature that there is not, and for other nodes than its own with Gauss-Legendre.
    """
    check(quadrature)
    m = len(P)
    if m == 1:
        return torch.ones_like(P)
    if quadrature == "riemann":
        return _riemann(P)
    if quadrature == "trapezoidal":
        return _composite(P, [1] * (m - 1))
    if quadrature == "simpson":
        # an even number of nodes leaves one interval over: the last three make a panel of the 3/8 rule
        panels = [2] * ((m - 1) // 2) if m % 2 else [2] * ((m - 4) // 2) + [3] if m > 2 else [1]
        return _composite(P, panels)
    own, q = _gauss_legendre(m)
    if P.requires_grad or not torch.allclose(P, own.to(P), rtol=0, atol=1e-6):
        raise ValueError("quadrature gauss_legendre has nodes of its own, which cannot be trained: use trapezoidal")
    return q.to(P)


def check(quadrature: str) -> None:
    """Raises ValueError for a quadrature that there is not."""
    if quadrature not in NAMES:
        raise ValueError(f"quadrature {quadrature!r}: use one of {', '.join(NAMES)}")


def _riemann(P: Tensor) -> Tensor:
    """Each node stands for a cell of its own; the cells are of one width where the nodes are evenly spaced."""
    m = len(P)
    share = torch.arange(1, m, dtype=P.dtype, device=P.device) / m
    inner = P[:-1] + (P[1:] - P[:-1]) * (1 - share)
    return torch.cat([inner, P.new_ones(1)]) - torch.cat([P.new_zeros(1), inner])


def _composite(P: Tensor, panels: list[int]) -> Tensor:
    """Newton-Cotes on panels of the given numbers of intervals, each exact for polynomials of that degree."""
    q = torch.cat([P[:1], P.new_zeros(len(P) - 2), 1 - P[-1:]])
    starts = list(itertools.accumulate([0, *panels]))[:-1]
    for degree in sorted(set(panels)):
        first = torch.tensor([s for s, d in zip(starts, panels, strict=True) if d == degree], device=P.device)
        index = first[:, None] + torch.arange(degree + 1, device=P.device)
        width = P[index[:, -1:]] - P[index[:, :1]]
        # nodes that a partition has drawn together span no panel, and weigh nothing
        tiny = torch.finfo(P.dtype).tiny
        local = (P[index] - P[index[:, :1]]) / width.clamp_min(tiny)
        if degree == 1:
            share = torch.full_like(local, 0.5)
        else:
            power = torch.arange(degree + 1, device=P.device)
            powers = local[:, None, :] ** power[:, None]
            moments = (1 / (power + 1).to(P.dtype)).expand(len(local), -1)
            share = torch.linalg.solve(powers, moments)
        q = q.scatter_add(0, index.flatten(), (width * share).flatten())
    return q


def _gauss_legendre(m: int) -> tuple[Tensor, Tensor]:
    """Nodes and weights of panels of two nodes, the last of three where m is odd, widths in proportion to their nodes."""
    counts = [2] * (m // 2) if m % 2 == 0 else [2] * ((m - 3) // 2) + [3] if m > 1 else [1]
    rules = {
        1: ([0.0], [2.0]),
        2: ([-(3**-0.5), 3**-0.5], [1.0, 1.0]),
        3: ([-(0.6**0.5), 0, 0.6**0.5], [5 / 9, 8 / 9, 5 / 9]),
    }
    P: list[float] = []
    q: list[float] = []
    start = 0
    for count in counts:
        points, shares = rules[count]
        P += [(start + count * (1 + point) / 2) / m for point in points]
        q += [count / m * share / 2 for share in shares]
        start += count
    return torch.tensor(P, dtype=torch.float64), torch.tensor(q, dtype=torch.float64)
