"""Linearise: a network that is affine as a whole becomes one nn.Linear.

    f(x) = A x + b,    b = f(0),    row k of A = the gradient of f_k, the same everywhere

    {"kind": "linearise", "shape": [3, 32, 32], "outputs": 10}      (shape of one input; outputs are (n, 10))

Exact: A comes from one backward pass through the network in float64, k copies of the zero input at once.
"""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from memexp.channels.hooked import twin

STEPS = (-1.0, 1e-2, -1e-2, 1e3, -1e3, 1e6, -1e6)


def apply(network: nn.Module, edit: Mapping[str, Any]) -> nn.Module:
    """nn.Sequential(Flatten, Linear) in place of `network`, which is left as it is.

    Raises ValueError for shapes that the network does not take and give, and where its slope is not everywhere the same.
    """
    shape, outputs = edit.get("shape"), edit.get("outputs", 0)
    if not isinstance(shape, list | tuple) or not all(isinstance(n, int) and n > 0 for n in (*shape, outputs)):
        raise ValueError(f"edit linearise: shape={shape!r}, outputs={outputs!r}: e.g. shape=[3, 32, 32], outputs=10")
    like = next(network.parameters(), torch.empty(0))
    linear = nn.Linear(math.prod(shape), outputs, device="meta", dtype=like.dtype)
    if not like.is_meta:
        matrix, offset = _affine(exactly(network).eval(), tuple(shape), outputs)
        linear.weight, linear.bias = nn.Parameter(matrix.to(like)), nn.Parameter(offset.to(like))
    trained = any(p.requires_grad for p in network.parameters())
    return nn.Sequential(nn.Flatten(), linear).train(network.training).requires_grad_(trained)


def exactly(network: nn.Module) -> nn.Module:
    """A copy in float64, on the CPU where its device has none."""
    copied = twin(network)
    return (copied.cpu() if any(p.device.type == "mps" for p in copied.parameters()) else copied).double()


def _affine(network: nn.Module, shape: tuple[int, ...], outputs: int) -> tuple[Tensor, Tensor]:
    """A (outputs, inputs) and b (outputs,)."""
    like = next(network.parameters(), torch.empty(0, dtype=torch.float64))
    try:
        with torch.no_grad():
            offset = network(like.new_zeros(1, *shape))
    except RuntimeError as error:
        raise ValueError(f"edit linearise: the network does not take inputs of shape {list(shape)}: {error}") from error
    if offset.shape != (1, outputs):
        raise ValueError(f"edit linearise: the network gives shape {tuple(offset.shape)}, not (1, {outputs})")
    if not is_affine(network, like.new_zeros(1, *shape)):
        raise ValueError("edit linearise: the network is not linear, its slope differs from input to input")
    with torch.enable_grad():  # of output k at copy k
        points = like.new_zeros(outputs, *shape, requires_grad=True)
        (slope,) = torch.autograd.grad(network(points).diagonal().sum(), points)
    return slope.flatten(1), offset[0]


@torch.no_grad()
def is_affine(network: nn.Module, x: Tensor) -> bool:
    """Whether slopes of `network` (eval mode, float64) are the same in many directions, both ways and for steps of 0.01 to such
    of a million, and add up: what bends or saturates anywhere along them is not affine. x: (1, ...), one of the directions.
    """
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(2, *x.shape, generator=generator, dtype=torch.float64).to(x)
    origin = network(torch.zeros_like(x))
    for ways in (x, torch.cat([a, b, a + b])):  # most networks are told from the first two slopes
        straight = network(ways) - origin
        least = 1e-7 * max(float(straight.abs().max()), 1e-6 * float(origin.abs().max()))
        for t in STEPS:
            if not (((network(t * ways) - origin) / t - straight).abs() <= least).all():
                return False
    return bool(((straight[0] + straight[1] - straight[2]).abs() <= least).all())
