"""Linearise: a network that is affine as a whole becomes one nn.Linear.

    f(x) = A x + b,    b = f(0),    row k of A = the gradient of f_k, the same everywhere

    {"kind": "linearise", "shape": [3, 32, 32], "outputs": 10}      (shape of one input; outputs are (n, 10))

Exact: A comes from one backward pass through the network in float64, k copies of the zero input at once.
"""

import copy
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn


def apply(network: nn.Module, edit: Mapping[str, Any]) -> nn.Module:
    """nn.Sequential(Flatten, Linear) in place of `network`, which is left as it is.

    Raises ValueError for shapes that the network does not take and give, and where its slope is not everywhere the same.
    """
    shape, outputs = edit.get("shape"), edit.get("outputs", 0)
    if not isinstance(shape, list | tuple) or not all(isinstance(n, int) and n > 0 for n in (*shape, outputs)):
        raise ValueError(f"edit linearise: shape={shape!r}, outputs={outputs!r}: e.g. shape=[3, 32, 32], outputs=10")
    like = next(network.parameters())
    linear = nn.Linear(math.prod(shape), outputs, device="meta", dtype=like.dtype)
    if not like.is_meta:
        exact = copy.deepcopy(network).eval()
        matrix, offset = _affine(exact if like.device.type == "mps" else exact.double(), tuple(shape), outputs)
        linear.weight, linear.bias = nn.Parameter(matrix.to(like.dtype)), nn.Parameter(offset.to(like.dtype))
    return nn.Sequential(nn.Flatten(), linear).train(network.training)


def _affine(network: nn.Module, shape: tuple[int, ...], outputs: int) -> tuple[Tensor, Tensor]:
    """A (outputs, inputs) and b (outputs,)."""
    like = next(network.parameters())
    try:
        with torch.no_grad():
            offset = network(like.new_zeros(1, *shape))
    except RuntimeError as error:
        raise ValueError(f"edit linearise: the network does not take inputs of shape {list(shape)}: {error}") from error
    if offset.shape != (1, outputs):
        raise ValueError(f"edit linearise: the network gives shape {tuple(offset.shape)}, not (1, {outputs})")
    elsewhere = torch.linspace(-3, 3, math.prod(shape), dtype=like.dtype, device=like.device).sin().view(1, *shape)
    slope, other = (
        _slope(network, point.expand(outputs, *shape)) for point in (torch.zeros_like(elsewhere), elsewhere)
    )
    if (slope - other).abs().max() > 1e-6 * slope.abs().max():
        raise ValueError("edit linearise: the network is not linear, its slope differs from input to input")
    return slope.flatten(1), offset[0]


def _slope(network: nn.Module, points: Tensor) -> Tensor:
    """The gradient of output k at point k, for all k."""
    with torch.enable_grad():
        points = points.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(network(points).diagonal().sum(), points)
    return gradient
