"""The rate of a power law."""

import math
from collections.abc import Sequence
from typing import Any

from omegaconf import OmegaConf

from memexp.config import ConfigError


def depths_of(case: Any) -> list[int]:
    """`case.depths`, over which a rate is fitted. Raises ConfigError for fewer than two, and for one below 2."""
    found = list(case.depths) if OmegaConf.is_list(case.depths) else [case.depths]
    if len(set(found)) < 2 or any(not isinstance(n, int) or n < 2 for n in found):
        raise ConfigError([f"case.depths: {found} is not allowed; it takes at least two depths, each at least 2."])
    return found


def fitted_slope(xs: Sequence[float], ys: Sequence[float]) -> float:
    """Least-squares slope of log y against log x."""
    points = [(math.log(x), math.log(y)) for x, y in zip(xs, ys, strict=True) if y > 0]
    x_mean = sum(x for x, _ in points) / len(points)
    y_mean = sum(y for _, y in points) / len(points)
    return sum((x - x_mean) * (y - y_mean) for x, y in points) / sum((x - x_mean) ** 2 for x, _ in points)
