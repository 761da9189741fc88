"""Error and angle between lists of tensors, in float64: on the host where a device may not have it (Apple's has none)."""

import math
from collections.abc import Sequence

from torch import Tensor


def relative_error(found: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """|found - expected| / |expected| over all tensors together."""
    difference = sum((_double(f) - _double(e)).square().sum() for f, e in zip(found, expected, strict=True))
    return math.sqrt(float(difference)) / max(_norm(expected), math.ulp(0.0))


def angle(a: Sequence[Tensor], b: Sequence[Tensor]) -> float:
    """Angle in degrees, accurate for small ones, where the arc cosine is not (Kahan 2006)."""
    norm_a, norm_b = _norm(a), _norm(b)
    if norm_a == 0 or norm_b == 0:
        return 0.0 if norm_a == norm_b else 90.0
    unit = [(_double(x) / norm_a, _double(y) / norm_b) for x, y in zip(a, b, strict=True)]
    return math.degrees(2 * math.atan2(_norm([x - y for x, y in unit]), _norm([x + y for x, y in unit])))


def _norm(tensors: Sequence[Tensor]) -> float:
    return math.sqrt(float(sum(_double(x).square().sum() for x in tensors)))


def _double(x: Tensor) -> Tensor:
    return (x if x.device.type in ("cpu", "cuda") else x.cpu()).double()
