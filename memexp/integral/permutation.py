"""The order of channels in which weights are smoothest: a shortest path through them (Solodskikh et al. 2023, section 4).

min over s of sum_i |W[s(i)] - W[s(i+1)]|, a travelling salesman's path without return, by 2-opt: reversing the stretch
s(i) .. s(j) changes the length by

    D[s(i-1), s(j)] + D[s(i), s(j+1)] - D[s(i-1), s(i)] - D[s(j), s(j+1)],

where a term falls away at an end of the path. Stretches are also moved elsewhere whole (or-opt), which 2-opt by itself takes
three reversals for. Several starts, the order as it is among them, so the path is never longer than that; up to 8 channels
all orders are compared.
"""

import functools
import itertools

import numpy as np
import torch
from torch import Tensor

BRUTE = 8
STRETCH = 3  # channels that or-opt moves together, at most

Array = np.ndarray


def distances(rows: Tensor) -> Array:
    """(n, n) sums of absolute differences between the rows of (n, features) in float64."""
    found = np.zeros((len(rows), len(rows)))
    # a long sum in float32 loses digits; of a symmetric matrix one half is enough
    for part in rows.detach().float().cpu().split(4096, dim=1):
        for i in range(0, len(rows), 64):
            found[i : i + 64, i:] += torch.cdist(part[i : i + 64], part[i:], p=1).double().numpy()
    found = np.triu(found, 1)
    return found + found.T


def length(D: Array, order: Array) -> float:
    """Of the path: the total variation of the rows in that order."""
    return float(D[order[:-1], order[1:]].sum())


def shortest(D: Array, starts: int = 5) -> Array:
    """The shortest order found for an (n, n) symmetric matrix of distances; the same order for the same matrix.

    starts: the identity, and paths to the nearest neighbour from starts - 1 channels.
    """
    n = len(D)
    if n <= BRUTE:
        orders = _orders(n)
        return orders[D[orders[:, :-1], orders[:, 1:]].sum(1).argmin()].copy()
    identity = np.arange(n)
    # from channels far from all others, and evenly through the rest: a path's ends are rarely in the middle
    outer = np.argsort(-D.sum(1), kind="stable")[np.linspace(0, n - 1, min(starts - 1, n)).astype(int)]
    candidates = [identity, *(_nearest(D, int(first)) for first in outer)]
    improved = [_improve(D, order) for order in candidates]
    return min(improved, key=lambda order: length(D, order))


@functools.cache
def _orders(n: int) -> Array:
    # a path and its reverse are one
    return np.array([p for p in itertools.permutations(range(n)) if p[0] <= p[-1]], dtype=np.int64).reshape(-1, n)


def _nearest(D: Array, first: int) -> Array:
    order = [first]
    left = D.copy()
    left[:, first] = np.inf
    for _ in range(len(D) - 1):
        order.append(int(left[order[-1]].argmin()))
        left[:, order[-1]] = np.inf
    return np.array(order)


def _improve(D: Array, order: Array) -> Array:
    """Until neither reversing a stretch nor moving one makes the path shorter."""
    # a channel at no distance from all others stands before and behind the path, so that its ends are as its middle
    n = len(D)
    around = np.zeros((n + 1, n + 1))
    around[:n, :n] = D
    path = np.concatenate([[n], order, [n]])
    least = 1e-9 * (D.max() or 1.0)
    better = True
    while better:
        better = False
        for i in range(1, n):
            better |= _reverse(around, path, i, least)
        for size in range(1, min(STRETCH, n - 1) + 1):
            for i in range(1, n - size + 2):
                better |= _move(around, path, i, size, least)
    return path[1:-1]


def _reverse(D: Array, path: Array, i: int, least: float) -> bool:
    """The best reversal of a stretch that starts at i, if it makes the path shorter."""
    before, first = path[i - 1], path[i]
    last, behind = path[i + 1 : -1], path[i + 2 :]
    gain = D[before, first] + D[last, behind] - D[before, last] - D[first, behind]
    best = int(gain.argmax())
    if gain[best] <= least:
        return False
    path[i : i + best + 2] = path[i : i + best + 2][::-1].copy()
    return True


def _move(D: Array, path: Array, i: int, size: int, least: float) -> bool:
    """The stretch of `size` at i to its best place, either way round, if that makes the path shorter."""
    stretch = path[i : i + size].copy()
    rest = np.concatenate([path[:i], path[i + size :]])
    a, b = rest[:-1], rest[1:]
    closed = D[path[i - 1], stretch[0]] + D[stretch[-1], path[i + size]] - D[path[i - 1], path[i + size]]
    forward = D[a, stretch[0]] + D[stretch[-1], b] - D[a, b]
    backward = D[a, stretch[-1]] + D[stretch[0], b] - D[a, b]
    cost = np.minimum(forward, backward)
    best = int(cost.argmin())
    if closed - cost[best] <= least:
        return False
    if backward[best] < forward[best]:
        stretch = stretch[::-1]
    path[1:-1] = np.concatenate([rest[: best + 1], stretch, rest[best + 1 :]])[1:-1]
    return True
