"""Which stretches of a weight's dimension are continuous, and their sampling at the present sizes.

A dimension is an `Axis` of one or more segments, each of a `Continuum` or discrete: a concatenation has one for each of its
sources, a flattened image `inner` places for each channel, a grouped convolution `outer` times the channels of a group.

A weight is kept as lambda times the native step h = 1 / (n - 1), so that it is as large as the weights that are sampled from it
and a learning rate means what it means for the discrete network:

    W[k, l] = q_l / h * sum_ij (lambda h)_ij u(x_out(k) (n_out - 1) - i) u(x_in(l) (n_in - 1) - j)
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from memexp.integral import kernel, quadrature
from memexp.integral.continuum import Continuum, whole
from memexp.integral.kernel import Block


@dataclass(frozen=True)
class Segment:
    """`outer` times the channels of `group`, `inner` places each; without a group, `inner` places that stay discrete."""

    group: Continuum | None
    outer: int = 1
    inner: int = 1

    @property
    def length(self) -> int:
        return self.outer * self.inner * (self.group.n if self.group else 1)

    def present(self, training: bool) -> int:
        return self.outer * self.inner * (self.group.present(training) if self.group else 1)

    def sample(self, x: Tensor, dim: int, integrated: bool, training: bool) -> Tensor:
        if self.group is None:
            return x
        samples = self.group.samples(training, integrated, x)
        if samples.S is not None:
            return self._product(samples.S, x, dim, samples.band)
        return x if samples.q is None else x * self._along(samples.q, dim, x.ndim)

    def restore(self, W: Tensor, dim: int, integrated: bool) -> Tensor:
        """lambda h of native weights in float64: what `sample` makes W of at the native size."""
        if self.group is None:
            return W
        n = self.group.n
        nodes = quadrature.nodes(self.group.quadrature, n).to(W.device)
        if integrated:
            q = quadrature.weights(self.group.quadrature, nodes) * (n - 1)
            W = W / self._along(q, dim, W.ndim)
        if self.group.quadrature == "gauss_legendre":
            inverse = torch.linalg.inv(kernel.matrix(nodes, n))
            W = self._product(inverse, W, dim, whole(n, n))
        return W

    def _along(self, q: Tensor, dim: int, ndim: int) -> Tensor:
        if self.inner > 1 or self.outer > 1:
            q = q.repeat_interleave(self.inner).repeat(self.outer)
        return q.view(-1, *(1,) * (ndim - dim - 1))

    def _product(self, S: Tensor, x: Tensor, dim: int, band: list[Block]) -> Tensor:
        if self.outer == self.inner == 1:
            first = x.movedim(dim, 0)
            return (
                kernel.banded(S, first.reshape(S.shape[1], -1), band).view(S.shape[0], *first.shape[1:]).movedim(0, dim)
            )
        first = x.unflatten(dim, (self.outer, S.shape[1], self.inner)).movedim(dim + 1, 0)
        y = kernel.banded(S, first.reshape(S.shape[1], -1), band)
        return y.view(S.shape[0], *first.shape[1:]).movedim(0, dim + 1).flatten(dim, dim + 2)


@dataclass(frozen=True)
class Axis:
    """Dimension `dim` of a weight; integrated: whether the layer sums over it, so that it has quadrature weights."""

    dim: int
    segments: tuple[Segment, ...]
    integrated: bool = False

    def present(self, training: bool) -> int:
        return sum(segment.present(training) for segment in self.segments)

    def even(self, training: bool) -> bool:
        return all(segment.group is None or segment.group.even(training) for segment in self.segments)

    def at_native(self) -> "Axis":
        """The same dimension where lambda was made of: at the native size, wherever the quadrature wants its nodes."""
        groups = [s.group and Continuum(s.group.name, s.group.n, s.group.quadrature) for s in self.segments]
        segments = [replace(s, group=group) for s, group in zip(self.segments, groups, strict=True)]
        return replace(self, segments=tuple(segments))

    def native(self, training: bool) -> bool:
        """Whether there is nothing to sample."""
        return not self.integrated and all(s.group is None or s.group.native(training) for s in self.segments)

    def sample(self, x: Tensor, training: bool) -> Tensor:
        """`x` with native dimension `dim`, sampled along it."""
        if self.native(training):
            return x
        parts = self._parts(x)
        sampled = [
            s.sample(part, self.dim, self.integrated, training) for s, part in zip(self.segments, parts, strict=True)
        ]
        return sampled[0] if len(sampled) == 1 else torch.cat(sampled, self.dim)

    def restore(self, W: Tensor) -> Tensor:
        """lambda h of native weights in float64."""
        parts = [
            s.restore(part, self.dim, self.integrated) for s, part in zip(self.segments, self._parts(W), strict=True)
        ]
        return torch.cat(parts, self.dim)

    def spread(self, values: Tensor, training: bool) -> Tensor:
        """From values at the present nodes, (k, m), to the native ones, (k, n); for statistics of data."""
        found = []
        for segment, part in zip(
            self.segments, values.split([s.present(training) for s in self.segments], 1), strict=True
        ):
            if segment.group is None or segment.group.native(training):
                found.append(part)
                continue
            rows = part.unflatten(1, (segment.outer, -1, segment.inner)).movedim(2, 3)
            wide = segment.group.drawn_out(rows.flatten(0, 2), training)
            found.append(wide.unflatten(0, rows.shape[:3]).movedim(3, 2).flatten(1))
        return found[0] if len(found) == 1 else torch.cat(found, 1)

    def _parts(self, x: Tensor) -> tuple[Tensor, ...]:
        if len(self.segments) == 1:
            return (x,)
        return x.split([segment.length for segment in self.segments], self.dim)
