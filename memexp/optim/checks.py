"""Ranges of optimizers' values, checked in every parameter group."""

from collections.abc import Iterable, Mapping
from typing import Any


def in_range(group: Mapping[str, Any]) -> None:
    """Raises ValueError, naming the value and its range, for an lr, eps, weight_decay or beta out of range."""
    for name in ("lr", "eps", "weight_decay"):
        if not group[name] >= 0:
            raise ValueError(f"{name}={group[name]!r} is not allowed: use a number of at least 0")
    for i, beta in enumerate(group["betas"]):
        if not 0 <= beta < 1:
            raise ValueError(f"betas[{i}]={beta!r} is not allowed: use a number of at least 0 and below 1")


def filled(params: Iterable[Any]) -> list[Any]:
    """`params` as a list. Raises ValueError where there are none."""
    listed = list(params)
    if not listed:
        raise ValueError("params is empty: give at least one parameter or parameter group")
    return listed
