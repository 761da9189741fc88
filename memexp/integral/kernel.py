"""The cubic-convolution kernel u (Keys 1981, a = -0.75) and the sampling of F(x) = sum_i lambda_i u(x (n - 1) - i).

lambda_i stands at the node i / (n - 1) of [0, 1], and the first and last are repeated beyond the ends, as in torch's bicubic
interpolation with align_corners=True. u(0) = 1 and u vanishes at every other integer, so F passes through lambda at the
nodes. Sampling is a product with a matrix of four entries a row; `banded` multiplies by blocks of its band alone.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

A = -0.75
OFFSETS = (-1, 0, 1, 2)
ROWS = 32  # of a block: enough for a fast product, few enough that a block is hardly wider than the band

Block = tuple[slice, slice]


def u(x: Tensor) -> Tensor:
    """u(x), zero from |x| = 2 on."""
    x = x.abs()
    near = ((A + 2) * x - (A + 3)) * x * x + 1
    far = ((A * x - 5 * A) * x + 8 * A) * x - 4 * A
    return torch.where(x <= 1, near, torch.where(x < 2, far, torch.zeros_like(x)))


def matrix(positions: Tensor, n: int) -> Tensor:
    """(m, n) matrix S with F(positions) = S lambda; differentiable in `positions`, (m,) in [0, 1]."""
    if n == 1:
        return positions.new_ones(len(positions), 1)
    x = positions * (n - 1)
    first = x.detach().floor().clamp(0, n - 2)
    offsets = positions.new_tensor(OFFSETS)
    taps = u((x - first)[:, None] - offsets)
    nodes = (first[:, None] + offsets).clamp(0, n - 1).long()
    return positions.new_zeros(len(positions), n).scatter_add(1, nodes, taps)


def blocks(positions: Sequence[float], n: int) -> list[Block]:
    """The band of `matrix(positions, n)` in blocks of (rows, columns), for positions in ascending order."""
    first = [min(max(int(x * (n - 1)), 0), max(n - 2, 0)) for x in positions]
    found = []
    for start in range(0, len(first), ROWS):
        rows = first[start : start + ROWS]
        # a column more on either side: the matrix may have rounded the position to the other side of a node
        found.append((slice(start, start + len(rows)), slice(max(rows[0] - 2, 0), min(rows[-1] + 4, n))))
    return found


def banded(S: Tensor, x: Tensor, band: Sequence[Block]) -> Tensor:
    """S x for (m, n) S that is zero outside of the blocks of `band`, and (n, columns) x; gradients of both."""
    product: Tensor = _Banded.apply(S, x, band)
    return product


class _Banded(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, S: Tensor, x: Tensor, band: Sequence[Block]) -> Tensor:
        # without a gradient of S, x is not needed again
        ctx.save_for_backward(S, x if ctx.needs_input_grad[0] else None)
        ctx.band, ctx.shape = band, x.shape
        y = x.new_empty(S.shape[0], x.shape[1])
        for rows, columns in band:
            torch.mm(S[rows, columns], x[columns], out=y[rows])
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        S, x = ctx.saved_tensors
        if grad.device.type != "cpu" and not ctx.needs_input_grad[0]:  # its band is one block, all of it
            return None, S.T @ grad if ctx.needs_input_grad[1] else None, None
        of_S = torch.zeros_like(S) if ctx.needs_input_grad[0] else None
        of_x = grad.new_zeros(ctx.shape) if ctx.needs_input_grad[1] else None
        for rows, columns in ctx.band:
            if of_S is not None:
                of_S[rows, columns] = grad[rows] @ x[columns].T
            if of_x is not None:
                of_x[columns].addmm_(S[rows, columns].T, grad[rows])
        return of_S, of_x, None
