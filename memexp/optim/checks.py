"""Ranges of optimizers' values and formats of what they train, checked in every parameter group."""

import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.complex64, torch.complex128)


def in_range(group: Mapping[str, Any]) -> None:
    """Raises ValueError, naming the value and its range, for an lr, eps, weight_decay or beta out of range, and for an option
    with which torch's RAdam is another method.
    """
    if group.get("maximize", False):
        raise ValueError("maximize=True is not allowed: give the loss another sign")
    if group["weight_decay"] and not group.get("decoupled_weight_decay", True):
        raise ValueError(
            f"decoupled_weight_decay=False is not allowed with weight_decay={group['weight_decay']!r}: use True, or "
            "weight_decay=0.0"
        )
    for name in ("lr", "eps", "weight_decay"):
        if not 0 <= group[name] < math.inf:
            raise ValueError(f"{name}={group[name]!r} is not allowed: use a finite number of at least 0")
    for i, beta in enumerate(group["betas"]):
        if not 0 <= beta < 1:
            raise ValueError(f"betas[{i}]={beta!r} is not allowed: use a number of at least 0 and below 1")


def filled(params: Iterable[Any]) -> list[Any]:
    """`params` as a list. Raises ValueError where there are none."""
    listed = list(params)
    if not listed:
        raise ValueError("params is empty: give at least one parameter or parameter group")
    return listed


def formats(params: Iterable[Any]) -> None:
    """Raises ValueError, naming shape and dtype, for a parameter in a format that there is no arithmetic for."""
    for p in params:
        if p.dtype not in DTYPES:
            names = ", ".join(str(dtype).removeprefix("torch.") for dtype in DTYPES)
            raise ValueError(f"a parameter of shape {tuple(p.shape)} is {p.dtype}: use one of {names}")
