"""Planes: which channel each entry of a tensor belongs to, and which channels turn out to be one and the same.

An atom is one index of one dimension of one parameter, numbered from 1; 0 is "no channel here". A plane of a tensor is an
integer array that broadcasts to the tensor's shape and holds an atom for each entry: of length 1 along each dimension along
which the atom is the same. An activation (n, c, h, w) has one plane, (1, c, 1, 1); a weight (o, i, k, k) has one for each
dimension; a tensor without planes has no channels. Whatever moves data moves its planes in the same way, so a channel may be
spread over many entries (flatten) or be in several places (cat([x, x])).

What two operations say about the same entry is united; the connected components at the end are the channels of the graph.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

Plane = NDArray[np.int64]
Planes = list[Plane]


@dataclass
class Atoms:
    """All atoms of a trace, which of them are one, and which may not be removed and why."""

    count: int = 1
    edges: list[tuple[Plane, Plane]] = field(default_factory=list)
    frozen: list[tuple[Plane, str]] = field(default_factory=list)

    def new(self, n: int) -> Plane:
        """`n` atoms that nothing is known of."""
        self.count += n
        return np.arange(self.count - n, self.count, dtype=np.int64)

    def freeze(self, plane: Plane, why: str) -> None:
        """None of the plane's channels can be removed."""
        self.frozen.append((plane[plane > 0], why))

    def unite(self, a: Plane, b: Plane, why: str = "it meets entries that are no channels") -> None:
        """Entry by entry (broadcast), one channel; a channel that meets no channel (0) cannot be removed."""
        if a.shape != b.shape:
            a, b = np.broadcast_arrays(a, b)
        if np.count_nonzero(a) == a.size and np.count_nonzero(b) == b.size:
            if a is not b:
                self.edges.append((a.ravel(), b.ravel()))
            return
        both = (a > 0) & (b > 0) & (a != b)
        if both.any():
            self.edges.append((a[both], b[both]))
        for x, y in ((a, b), (b, a)):
            alone = (x > 0) & (y == 0)
            if alone.any():
                self.freeze(x[alone], why)

    def couple(self, plane: Plane, axes: Iterable[int], why: str = "") -> Plane:
        """One channel along each of `axes`: the plane with length 1 there."""
        axes = [axis for axis in axes if plane.shape[axis] > 1]
        if not axes:
            return plane
        first = plane[tuple(slice(1) if axis in axes else slice(None) for axis in range(plane.ndim))]
        self.unite(plane, first, why or "it meets entries that are no channels")
        if (first == 0).any():  # the first is no channel, but others may be: they are frozen now
            first = plane.max(axis=tuple(axes), keepdims=True)
        return first

    def roots(self) -> Plane:
        """The lowest atom of each atom's channel, (count,): connected components of all that was united."""
        root = np.arange(self.count, dtype=np.int64)
        if not self.edges:
            return root
        one, other = (np.concatenate(ends) for ends in zip(*self.edges, strict=True))
        while (root[one] != root[other]).any():
            for a, b in self.edges:  # in the forward's order, so that few rounds do
                left, right = root[a], root[b]
                if (left != right).any():
                    np.minimum.at(root, np.maximum(left, right), np.minimum(left, right))
            while (root[root] != root).any():
                root = root[root]
        return root


def varies(plane: Plane) -> frozenset[int]:
    """The dimensions along which the plane's channels differ."""
    return _long(plane.shape)


@lru_cache(maxsize=4096)
def _long(shape: tuple[int, ...]) -> frozenset[int]:
    return frozenset(axis for axis, size in enumerate(shape) if size > 1)


def compress(plane: Plane) -> Plane:
    """Length 1 along each dimension along which nothing differs."""
    for axis, size in enumerate(plane.shape):
        if size > 1:
            before, after = (0,) * axis, (0,) * (plane.ndim - axis - 1)
            if plane.size and plane.item((*before, -1, *after)) != plane.item((0,) * plane.ndim):
                continue  # as most do: nothing more is to be compared
            first = plane[(slice(None),) * axis + (slice(1),)]
            if (plane == first).all():
                plane = first
    return plane


def tidy(planes: Iterable[Plane]) -> Planes:
    """The planes that say something."""
    return [p for p in map(compress, planes) if p.size > 1]


def blocks(before: Sequence[int], after: Sequence[int]) -> list[tuple[list[int], list[int]]]:
    """The finest runs of dimensions (before, after) of equal product into which a reshape falls apart."""
    found: list[tuple[list[int], list[int]]] = []
    i = j = 0
    while i < len(before) or j < len(after):
        olds, news = [], []
        a = b = 1
        if i < len(before):
            olds.append(i)
            a, i = before[i], i + 1
        if j < len(after):
            news.append(j)
            b, j = after[j], j + 1
        while a != b:
            if (a < b or j >= len(after)) and i < len(before):
                olds.append(i)
                a, i = a * before[i], i + 1
            else:
                news.append(j)
                b, j = b * after[j], j + 1
        found.append((olds, news))
    return found


def reshape(plane: Plane, before: Sequence[int], after: Sequence[int]) -> Plane:
    """The plane of a tensor of shape `before` that is viewed as `after`; only what differs is written out."""
    expanded, shape = list(plane.shape), [1] * len(after)
    for olds, news in blocks(before, after):
        if any(plane.shape[d] > 1 for d in olds):
            for d in olds:
                expanded[d] = before[d]
            for d in news:
                shape[d] = after[d]
    return compress(np.broadcast_to(plane, expanded).reshape(shape))


def lift(plane: Plane, dims: int) -> Plane:
    """The plane with dimensions of length 1 in front, as broadcasting aligns it."""
    return plane.reshape((1,) * (dims - plane.ndim) + plane.shape)


def merge(atoms: Atoms, operands: Sequence[tuple[Planes, Sequence[int]]], why: str) -> Planes:
    """Planes of an elementwise result: what the operands (planes, shape) say about the same entries is united.

    An operand that is long along a dimension, but has no channels along it, freezes what others have there; those that differ
    along other dimensions too (heads, in a rotary embedding) are one along it.
    """
    if len(operands) == 1:
        return distinct([operands[0][0]])
    dims = max(len(shape) for _, shape in operands)
    aligned = [([lift(p, dims) for p in planes], (1,) * (dims - len(s)) + tuple(s)) for planes, s in operands]
    for i, (planes, _) in enumerate(aligned):
        for plane in planes:
            support = varies(plane)
            for j, (others, shape) in enumerate(aligned):
                if i == j:
                    continue
                seen: set[int] = set()
                for other in others:
                    if support & varies(other):
                        seen |= varies(other)
                        if i < j:
                            atoms.unite(plane, other, why)
                alone = {d for d in support - seen if shape[d] > 1}
                if alone == support:
                    atoms.freeze(plane, why)
                else:
                    atoms.couple(plane, alone, why)
    return distinct([planes for planes, _ in aligned])


def distinct(operands: Sequence[Planes]) -> Planes:
    """Without those whose dimensions other operands' cover: they have been united with them.

    Those of one operand have not: a weight whose kernel was flattened has several along one dimension.
    """
    every = [(i, plane) for i, planes in enumerate(operands) for plane in planes]
    if len(every) == 1:
        return [plane for _, plane in every if plane.size > 1]
    kept: list[tuple[int, Plane]] = []
    for i, plane in sorted(every, key=lambda own: (len(varies(own[1])), own[1].size)):
        covered = set().union(*(varies(other) for j, other in kept if j != i))
        if not varies(plane) <= covered:
            kept.append((i, plane))
    return [plane for _, plane in kept]
