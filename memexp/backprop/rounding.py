"""Rounding to multiples of 2^-k, which makes additive couplings exactly undoable in floating point.

If x and r are multiples of 2^-k and |x + r| < 2^(24-k), then x + r is representable in float32 (24 bits of mantissa),
so (x + r) - r = x bit for bit. A Chain with `exact` rounds its streams once at entry and each branch's output before it
is added; gradients pass straight through.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from memexp.backprop.errors import StepError


class Rounding:
    """The grid of multiples of 2^-k: `k` bits after the binary point, |y| < 2^(24-k).

    Raises:
        ValueError: k is outside 1..23.
    """

    def __init__(self, bits: int) -> None:
        if isinstance(bits, bool) or not isinstance(bits, int) or not 1 <= bits <= 23:
            raise ValueError(f"exact_bits={bits!r}: use an integer from 1 to 23 (streams are multiples of 2^-bits)")
        self.bits = bits
        self.limit = 2.0 ** (24 - bits)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Rounding) and other.bits == self.bits

    def __hash__(self) -> int:
        return hash(self.bits)

    def round(self, x: Tensor) -> Tensor:
        """`x` in float32 (float64 stays), rounded to the nearest multiple of 2^-k; no autograd. A new tensor."""
        scaled = x.to(torch.promote_types(x.dtype, torch.float32)) * 2.0**self.bits
        return scaled.round_().mul_(2.0**-self.bits)

    def enter(self, x: Tensor) -> Tensor:
        """A stream put on the grid, with autograd; one of integers or complex numbers as it is: no sum is taken of it.

        Negative zero becomes zero: it is the one value that (x + r) - r does not give back, and no sum that starts
        without it can give it.
        """
        return self(x) + 0.0 if x.is_floating_point() else x

    def __call__(self, x: Tensor) -> Tensor:
        """`round` with the straight-through gradient where `x` needs one."""
        if (torch.is_grad_enabled() and x.requires_grad) or forward_ad.unpack_dual(x).tangent is not None:
            rounded: Tensor = _StraightThrough.apply(x, self)
            return rounded
        return self.round(x)


class RangeWatch:
    """Watches |y| < 2^(24-k) at every step of one forward pass; looks at the figures once, at the end of the pass.

    Attributes:
        left: the error of a pass that left the range.
    """

    def __init__(self, rounding: Rounding) -> None:
        self.rounding = rounding
        self.left: StepError | None = None
        self._ends: list[tuple[str, Tensor | float, Tensor | float]] = []

    def see(self, name: str, streams: tuple[Tensor, ...]) -> None:
        for y in streams:
            if not y.is_floating_point() or not y.numel():
                continue
            y = y.detach()
            if y.device.type == "cpu":
                # two reductions read y twice and are still several times faster than the infinity norm, or aminmax of NHWC
                self._ends.append((name, y.amin().item(), y.amax().item()))
            else:  # one kernel, and to be read at the end
                self._ends.append((name, *torch.aminmax(y)))

    def check(self) -> StepError | None:
        """The error of a step that left the range, or of a value that is not finite. Synchronises with the device once."""
        return self.verdict()()

    def verdict(self) -> Callable[[], StepError | None]:
        """`check` of what has been seen so far, to be called whenever it suits."""
        seen, self._ends = self._ends, []
        waiting = [end for _, *ends in seen for end in ends if isinstance(end, Tensor)]
        read = torch.stack(waiting) if waiting else None

        def look() -> StepError | None:
            numbers = iter(read.tolist() if read is not None else ())
            for name, *ends in seen:
                low, high = (next(numbers) if isinstance(end, Tensor) else end for end in ends)
                if not (-self.rounding.limit < low and high < self.rounding.limit):
                    self.left = self._error(name, low if math.isnan(low) else max(-low, high))
                    break
            return self.left

        return look

    def _error(self, name: str, peak: float) -> StepError:
        if not math.isfinite(peak):
            return StepError(f"{name}: a stream is not finite (largest magnitude {peak}); lower the learning rate")
        bits = 23 - math.ceil(math.log2(peak))
        advice = f"use exact_bits={bits}" if bits >= 1 else "use exact=false"
        return StepError(
            f"{name}: a stream reaches {peak:g}, but exact_bits={self.rounding.bits} is exact below "
            f"{self.rounding.limit:g} only: {advice}"
        )


class _StraightThrough(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, rounding: Rounding) -> Tensor:
        return rounding.round(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Rounding], output: Tensor) -> None:
        ctx.dtype, ctx.rounded = inputs[0].dtype, output.dtype

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0].to(ctx.dtype), None

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Tensor:
        return tangents[0].to(ctx.rounded, copy=True)
