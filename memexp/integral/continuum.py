"""A group of channels that are one continuous variable, and how it is sampled at its present size.

All dimensions of all weights that a `Continuum` couples are sampled at the same nodes of [0, 1].
"""

import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, NamedTuple

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


class Samples(NamedTuple):
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
                band = whole(*fixed.shape)
            return Samples(_tensor(fixed, like), _tensor(shares, like), band)
        P = self.nodes()
        S = kernel.matrix(P, self.n)
        q = quadrature.weights(self.quadrature, P) * (self.n - 1) if integrated else None
        S = S if q is None else q[:, None] * S
        return Samples(
            S.to(like.dtype), q, whole(len(P), self.n) if _unreadable(P) else kernel.blocks(P.tolist(), self.n)
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


class _Held:
    """What `make` has made, by its arguments: a step draws sizes that others have drawn. The longest unused go first."""

    def __init__(self, make: Callable[..., Any], most: int) -> None:
        self.make, self.most = make, most  # bytes
        self._held: OrderedDict[Any, Any] = OrderedDict()
        self._bytes = 0
        self._one = threading.Lock()

    def __call__(self, *key: Any) -> Any:
        with self._one:
            found = self._held.get(key)
            if found is not None:
                self._held.move_to_end(key)
                return found
            found = self._held[key] = self.make(*key)
            self._bytes += _size(found)
            while self._bytes > self.most and len(self._held) > 1:
                self._bytes -= _size(self._held.popitem(last=False)[1])
            return found


def _size(samples: Any) -> int:
    return sum(part.nbytes for part in samples[:2] if part is not None)


def _moved(tensor: Tensor, device: torch.device) -> Tensor:
    """The host waits for no copy from memory that the device reads by itself."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


def whole(m: int, n: int) -> list[Block]:
    """The band of a matrix (m, n) of which all entries count."""
    return [(slice(0, m), slice(0, n))]


def _make(
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


def _make_resident(key: Key, dtype: torch.dtype, device: torch.device) -> Samples:
    """On an accelerator, to which nothing is copied again while it stays there."""
    fixed, shares, _ = _fixed(*key)
    # no tensor of a trace without data, and one that autograd may save
    with _disable_current_modes(), torch.inference_mode(False):
        S, q = (None if a is None else _moved(torch.from_numpy(a).to(dtype), device) for a in (fixed, shares))
    return Samples(S, q, [] if fixed is None else whole(*fixed.shape))


# every size of a ResNet-18 has room; of layers of thousands of channels a matrix alone takes tens of megabytes
_fixed = _Held(_make, 2**29)
_resident = _Held(_make_resident, 2**26)
