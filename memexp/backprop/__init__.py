"""How gradients are obtained, and what is kept in memory for it: a Chain of steps and its strategies."""

from memexp.backprop.apply import apply
from memexp.backprop.chain import Chain
from memexp.backprop.check import check
from memexp.backprop.coupling import AdditiveCoupling
from memexp.backprop.errors import StepError
from memexp.backprop.euler import EulerStep
from memexp.backprop.heun import HeunStep
from memexp.backprop.streams import full_precision, join, split
from memexp.backprop.wrapped import chains

__all__ = [
    "AdditiveCoupling",
    "Chain",
    "EulerStep",
    "HeunStep",
    "StepError",
    "apply",
    "chains",
    "check",
    "full_precision",
    "join",
    "split",
]
