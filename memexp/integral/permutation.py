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
BLOCK = 64  # places whose gains are worked out together

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
        # where in a block of places something may be gained is seen at once; there each place is then tried by itself
        for start in range(1, n, BLOCK):
            block = np.arange(start, min(start + BLOCK, n))
            for i in block[_reversals(around, path, block).max(1) > least].tolist():
                better |= _reverse(around, path, i, least)
        for size in range(1, min(STRETCH, n - 1) + 1):
            for start in range(1, n - size + 2, BLOCK):
                block = np.arange(start, min(start + BLOCK, n - size + 2))
                for i in block[_moves(around, path, block, size).max(1) > least].tolist():
                    better |= _move(around, path, i, size, least)
    return path[1:-1]


def _reversals(D: Array, path: Array, i: Array) -> Array:
    """(places, ends) what reversing each stretch from one of the places `i` gains; 0 for ends before it."""
    before, first = path[i - 1], path[i]
    last, behind = path[1:-1], path[2:]
    gain = D[before, first][:, None] + D[last, behind] - D[before].take(last, 1) - D[first].take(behind, 1)
    gain[np.arange(1, len(path) - 1) <= i[:, None]] = 0
    return gain


def _reverse(D: Array, path: Array, i: int, least: float) -> bool:
    """The best reversal of a stretch that starts at i, if it makes the path shorter."""
    gain = _reversals(D, path, np.array([i]))[0]
    best = int(gain.argmax())
    if gain[best] <= least:
        return False
    path[i : best + 2] = path[i : best + 2][::-1].copy()
    return True


def _moves(D: Array, path: Array, i: Array, size: int) -> Array:
    """(places, 2 * gaps) what moving the stretch of `size` at each of the places `i` gains: into each gap, then turned."""
    before, first, last, behind = path[i - 1], path[i], path[i + size - 1], path[i + size]
    closed = D[before, first] + D[last, behind] - D[before, behind]
    there = D[path[:-1], path[1:]] + closed[:, None]
    to_first, to_last = D[first].take(path, 1), D[last].take(path, 1)
    gain = np.concatenate([there - to_first[:, :-1] - to_last[:, 1:], there - to_last[:, :-1] - to_first[:, 1:]], 1)
    gap = np.arange(gain.shape[1]) % (len(path) - 1) - i[:, None]
    gain[(gap >= -1) & (gap < size)] = 0  # beside it and within it
    return gain


def _move(D: Array, path: Array, i: int, size: int, least: float) -> bool:
    """The stretch of `size` at i to its best place, either way round, if that makes the path shorter."""
    gain = _moves(D, path, np.array([i]), size)[0]
    best = int(gain.argmax())
    if gain[best] <= least:
        return False
    turned, gap = divmod(best, len(path) - 1)
    stretch = path[i : i + size][:: -1 if turned else 1].copy()
    rest, behind = np.concatenate([path[:i], path[i + size :]]), gap + 1 if gap < i else gap + 1 - size
    path[:] = np.concatenate([rest[:behind], stretch, rest[behind:]])
    return True
