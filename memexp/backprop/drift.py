"""How far streams that are computed back are from the original ones: looked at now and then, and warned of once.

In floating point y - F(x) is not quite x when y = x + F(x), and in a deep network, or with branches in half precision, one
step's error is amplified by the next. A small sample of the streams that enter a run of undone steps is kept in the first
pass, and whenever the number of passes has doubled; the others keep as many numbers that say nothing, so that all take the same
memory. Of a pass that is recorded as a CUDA graph its replays are counted.
"""

import warnings
from collections.abc import Callable
from itertools import count
from typing import NamedTuple

from torch import Tensor

from memexp.backprop.capture import is_captured
from memexp.backprop.measures import relative_error

WIDTH = 4  # of the sample, in each dimension
TOLERANCE = 1e-3  # |x~ - x| / |x|; gradients are off by several times as much

Sample = tuple[Tensor, ...]


class Kept(NamedTuple):
    """Of one pass until its backward."""

    sample: Sample
    looked_at: bool


class Drift:
    """Of one Chain with an inverse that is taken as exact."""

    def __init__(self) -> None:
        self._passes = 0
        self._warned = False

    def begin(self) -> None:
        """Called once a pass."""
        self._passes += 1

    def keep(self, streams: tuple[Tensor, ...]) -> Kept:
        """For what enters in this pass."""
        if not self._warned and (_is_power_of_2(self._passes) or any(map(is_captured, streams))):
            return Kept(sample(streams), not any(x.is_meta for x in streams))
        return Kept(tuple([x.new_empty([min(size, WIDTH) for size in x.shape]) for x in streams]), False)

    def due(self, inputs: tuple[Tensor, ...], kept: Kept) -> bool:
        """Whether the inputs that are computed back in this pass are to be compared with the sample of the original ones."""
        return (
            kept.looked_at
            and not self._warned
            and all(x.shape == s.shape for x, s in zip(map(_middle, inputs), kept.sample, strict=True))
        )

    def replayed(self, name: str, found: Sample, sample: Sample) -> Callable[[], None]:
        """`compare` of a recorded pass, to be called after each replay: it looks at the first, the second, the fourth, ..."""
        replays = count(1)
        return lambda: self.compare(name, found, sample) if _is_power_of_2(next(replays)) else None

    def compare(self, name: str, found: Sample, sample: Sample) -> None:
        """Warns, once, where two samples of the same streams differ too much. found: of those that are computed back."""
        error = relative_error(found, sample)
        if error < TOLERANCE or self._warned:
            return
        self._warned = True
        warnings.warn(
            f"{name}: the streams that entered are computed back with a relative error of {error:.1e}, and gradients are off "
            "by more: use exact=true, which undoes additive couplings bit for bit (autocast and great depth need it), or "
            "backprop=checkpointed; memexp.backprop.check(chain, inputs) measures inverse and gradient of each step",
            stacklevel=2,
        )


def sample(streams: tuple[Tensor, ...]) -> Sample:
    return tuple(_middle(x).clone() for x in streams)


def _is_power_of_2(n: int) -> bool:
    return n & (n - 1) == 0


def _middle(x: Tensor) -> Tensor:
    starts = [max(0, (size - WIDTH) // 2) for size in x.shape]
    return x.detach()[tuple([slice(start, start + WIDTH) for start in starts])]
