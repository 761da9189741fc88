"""Which stretches of a weight's dimension are continuous, and their sampling at a group's present size.

A `Continuum` is a group of channels that are one continuous variable x of [0, 1]: all dimensions of all weights that it
couples are sampled at the same nodes. A dimension is an `Axis` of one or more segments: a concatenation has one for each of its
sources, a flattened image `inner` places for each channel, a grouped convolution `outer` times the channels of a group.

A weight is kept as lambda times the native step h = 1 / (n - 1), so that it is as large as the weights that are sampled from it
and a learning rate means what it means for the discrete network:

    W[k, l] = q_l / h * sum_ij (lambda h)_ij u(x_out(k) (n_out - 1) - i) u(x_in(l) (n_in - 1) - j)
"""

import functools
from collections import OrderedDict
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.compiler import is_dynamo_compiling
from torch.utils._python_dispatch import _disable_current_modes

from memexp.integral import kernel, quadrature
from memexp.integral.kernel import Block
from memexp.integral.partition import Partition

DAMPING = 1e-3  # of the least change of statistics: beside 1, what a node that stands alone weighs
Nodes = int | tuple[float, ...]
Key = tuple[str, Nodes, int, bool, bool]  # of `_fixed`


@dataclass(frozen=True)
class Samples:
    """How a dimension is sampled: S: (m, n), None for the identity, and its band; q: (m,) q / h where it is integrated.

    Where there is an S, q is on its rows already.
    """

    S: Tensor | None
    q: Tensor | None
    band: list[Block]


class Continuum:
    """Channels that are one continuous variable.

    Attributes:
        name: of the group. n: its native number of channels.
        size: in evaluation: a number of nodes, where the quadrature wants them, or the ascending nodes themselves.
        drawn: the same in the present training step.
        nodes: a partition that is trained, whatever the mode.
    """

    def __init__(self, name: str, n: int, quadrature: str = "trapezoidal") -> None:
        self.name = name
        self.n = n
        self.quadrature = quadrature
        self.size: Nodes = n
        self.drawn: Nodes = n
        self.nodes: Partition | None = None

    def even(self, training: bool) -> bool:
        """Whether the nodes stand at equal distances from 0 to 1, however many."""
        counted = self.nodes is None and isinstance(self._now(training), int)
        return counted and self.quadrature != "gauss_legendre"

    def present(self, training: bool) -> int:
        """The number of channels now. Kept apart by mode, which a recomputation in backward puts back to its first pass's."""
        if self.nodes is not None:
            return len(self.nodes.delta) + 1
        now = self._now(training)
        return now if isinstance(now, int) else len(now)

    def _now(self, training: bool) -> Nodes:
        return self.drawn if training else self.size

    def native(self, training: bool) -> bool:
        """Whether the nodes now are where lambda is given, so that there is nothing to sample."""
        return self.even(training) and self.present(training) == self.n

    def samples(self, training: bool, integrated: bool, like: Tensor) -> Samples:
        """How a dimension of `n` is sampled now, for weights as `like`."""
        if self.nodes is None:
            key = self.quadrature, self._now(training), self.n, integrated, like.dtype == torch.float64
            if like.device.type not in ("cpu", "meta") and not (isinstance(like, FakeTensor) or is_dynamo_compiling()):
                return _resident(key, like.dtype, like.device)
            fixed, shares, band = _fixed(*key)
            if like.is_cuda and fixed is not None:
                band = _whole(*fixed.shape)
            return Samples(_tensor(fixed, like), _tensor(shares, like), band)
        P = self.nodes()
        S = kernel.matrix(P, self.n)
        q = quadrature.weights(self.quadrature, P) * (self.n - 1) if integrated else None
        S = S if q is None else q[:, None] * S
        return Samples(
            S.to(like.dtype), q, _whole(len(P), self.n) if _unreadable(P) else kernel.blocks(P.tolist(), self.n)
        )

    def drawn_out(self, values: Tensor, training: bool) -> Tensor:
        """From values at the present nodes, (rows, m), to the native ones, (rows, n), by straight lines. Where the nodes stand
        anywhere, these are moved by as little as makes samples at the nodes those values again.
        """
        if self.even(training):
            size = (len(values), self.n)
            return torch.nn.functional.interpolate(values[None, None], size, mode="bilinear", align_corners=True)[0, 0]
        with torch.no_grad():
            P = self._places(training).to(values.device)
            x = torch.linspace(0, 1, self.n, dtype=P.dtype, device=P.device)
            behind = torch.searchsorted(P, x).clamp(1, len(P) - 1)
            width = (P[behind] - P[behind - 1]).clamp_min(torch.finfo(P.dtype).tiny)
            share = ((x - P[behind - 1]) / width).clamp(0, 1)
            lines = torch.lerp(values[:, behind - 1].double(), values[:, behind].double(), share)
            S = kernel.matrix(P, self.n)
            # nodes that are drawn together sample almost the same, and are not told apart at any price
            damped = S @ S.T + DAMPING * torch.eye(len(P), dtype=P.dtype, device=P.device)
            missing = torch.linalg.solve_ex(damped, (values - lines @ S.T).T).result
            return (lines + missing.T @ S).to(values.dtype)

    def _places(self, training: bool) -> Tensor:
        """Of the present nodes, in float64."""
        return _nodes(self.quadrature, self._now(training)) if self.nodes is None else self.nodes()


def _nodes(name: str, nodes: Nodes) -> Tensor:
    return quadrature.nodes(name, nodes) if isinstance(nodes, int) else torch.tensor(nodes, dtype=torch.float64)


def _unreadable(P: Tensor) -> bool:
    """On an accelerator, where reading would wait for it and one product is as fast; and without data."""
    return P.device.type != "cpu" or type(P) not in (Tensor, torch.nn.Parameter)


def _tensor(array: np.ndarray | None, like: Tensor) -> Tensor | None:
    return None if array is None else torch.from_numpy(array).to(like)


class _Resident:
    """Samples that stay on an accelerator: a step draws sizes that others have drawn, and copies nothing from the host."""

    def __init__(self, most: int) -> None:
        self.most = most  # bytes; the longest unused go first
        self._held: OrderedDict[Any, Samples] = OrderedDict()
        self._bytes = 0

    def __call__(self, key: Key, dtype: torch.dtype, device: torch.device) -> Samples:
        found = self._held.get((key, dtype, device))
        if found is not None:
            self._held.move_to_end((key, dtype, device))
            return found
        fixed, shares, _ = _fixed(*key)
        # no tensor of a trace without data, and one that autograd may save
        with _disable_current_modes(), torch.inference_mode(False):
            S, q = (None if a is None else _moved(torch.from_numpy(a).to(dtype), device) for a in (fixed, shares))
        found = self._held[key, dtype, device] = Samples(S, q, [] if fixed is None else _whole(*fixed.shape))
        self._bytes += _size(found)
        while self._bytes > self.most and len(self._held) > 1:
            self._bytes -= _size(self._held.popitem(last=False)[1])
        return found


_resident = _Resident(2**26)


def _size(samples: Samples) -> int:
    return sum(tensor.nbytes for tensor in (samples.S, samples.q) if tensor is not None)


def _moved(tensor: Tensor, device: torch.device) -> Tensor:
    """The host waits for no copy from memory that the device reads by itself."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


def _whole(m: int, n: int) -> list[Block]:
    return [(slice(0, m), slice(0, n))]


@functools.lru_cache(maxsize=2048)
def _fixed(
    name: str, nodes: Nodes, n: int, integrated: bool, double: bool
) -> tuple[np.ndarray | None, np.ndarray | None, list[Block]]:
    """`Samples` at nodes that are not trained, as arrays: a tensor made in a trace without data would be one without data."""
    with _disable_current_modes(), torch.device("cpu"):
        P = _nodes(name, nodes)
        q = quadrature.weights(name, P) * (n - 1) if integrated else None
        dtype = torch.float64 if double else torch.float32
        narrow = None if q is None else q.to(dtype).numpy()
        if nodes == n and name != "gauss_legendre":
            return None, narrow, []
        S = kernel.matrix(P, n)
        S = S if q is None else q[:, None] * S
        return S.to(dtype).numpy(), None, kernel.blocks(P.tolist(), n)


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
            W = self._product(inverse, W, dim, _whole(n, n))
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
